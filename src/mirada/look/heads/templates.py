"""Sentences whose links are known: a small bilingual grammar, and the reader of CoNLL-U files.

Each template is one sentence in English and in Spanish. A token is written NAME/relation/HEAD,
NAME=word where the word is fixed; equal names on both sides translate each other. The number in a
name is the noun that it agrees with: D article, N noun, A adjective, V verb with an object, T the
same in the past, G its participle, I verb without one, M its infinitive, X was/were, J how
someone is, R pronoun, S possessive (whose, of what), H can. Z=never~always is a negation, which
its twin replaces. Y is a Spanish verb whose subject is left out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from mirada.errors import MiradaError, UntrustedInputError

TEMPLATES = """
1 being | D1/det/N1 N1/nsubj/I1 I1/root . | D1/det/N1 N1/nsubj/I1 I1/root .
1 being | D1/det/N1 A1/amod/N1 N1/nsubj/I1 I1/root B=quickly/advmod/I1 . \
| D1/det/N1 N1/nsubj/I1 A1/amod/N1 I1/root B=rápido/advmod/I1 .
1 being | D1/det/N1 N1/nsubj/I1 I1/root B=slowly/advmod/I1 . \
| D1/det/N1 N1/nsubj/I1 I1/root B=despacio/advmod/I1 .
1 being, 2 thing | D1/det/N1 N1/nsubj/V1 V1/root D2/det/N2 N2/obj/V1 . \
| D1/det/N1 N1/nsubj/V1 V1/root D2/det/N2 N2/obj/V1 .
1 being, 2 thing | D1/det/N1 A1/amod/N1 N1/nsubj/V1 V1/root D2/det/N2 N2/obj/V1 . \
| D1/det/N1 N1/nsubj/V1 A1/amod/N1 V1/root D2/det/N2 N2/obj/V1 .
1 being, 2 thing | D1/det/N1 N1/nsubj/V1 V1/root D2/det/N2 A2/amod/N2 N2/obj/V1 . \
| D1/det/N1 N1/nsubj/V1 V1/root D2/det/N2 N2/obj/V1 A2/amod/N2 .
1 being, 2 thing | D1/det/N1 N1/nsubj/T1 T1/root D2/det/N2 N2/obj/T1 B=today/advmod/T1 . \
| B=hoy/advmod/T1 D1/det/N1 N1/nsubj/T1 T1/root D2/det/N2 N2/obj/T1 .
1 being, 2 thing | D1/det/N1 N1/nsubj/I1 C=with/case/N2 D2/det/N2 N2/nmod/N1 I1/root . \
| D1/det/N1 N1/nsubj/I1 C=con/case/N2 D2/det/N2 N2/nmod/N1 I1/root .
1 being, 2 thing | D1/det/N1 A1/amod/N1 N1/nsubj/I1 C=with/case/N2 D2/det/N2 A2/amod/N2 \
N2/nmod/N1 I1/root . | D1/det/N1 N1/nsubj/I1 A1/amod/N1 C=con/case/N2 D2/det/N2 N2/nmod/N1 \
A2/amod/N2 I1/root .
1 being, 2 place | D1/det/N1 N1/nsubj/I1 I1/root C=in/case/N2 D2/det/N2 N2/obl/I1 . \
| D1/det/N1 N1/nsubj/I1 I1/root C=en/case/N2 D2/det/N2 N2/obl/I1 .
1 being, 2 place | C=in/case/N2 D2/det/N2 N2/obl/I1 , D1/det/N1 N1/nsubj/I1 I1/root . \
| C=en/case/N2 D2/det/N2 N2/obl/I1 , D1/det/N1 N1/nsubj/I1 I1/root .
1 being, 2 thing, 3 place | D1/det/N1 N1/nsubj/T1 T1/root D2/det/N2 N2/obj/T1 C=in/case/N3 \
D3/det/N3 N3/obl/T1 . | D1/det/N1 N1/nsubj/T1 T1/root D2/det/N2 N2/obj/T1 C=en/case/N3 D3/det/N3 \
N3/obl/T1 .
1 being, 2 place | D1/det/N1 N1/nsubj/I1 C=in/case/N2 D2/det/N2 N2/nmod/N1 I1/root \
B=quickly/advmod/I1 . | D1/det/N1 N1/nsubj/I1 C=en/case/N2 D2/det/N2 N2/nmod/N1 I1/root \
B=rápido/advmod/I1 .
1 person, 2 person | D1/det/N1 N1/nsubj/T1 T1/root D2/det/N2 N2/obj/T1 W=because/mark/J1 \
R1/nsubj/J1 X1/cop/J1 J1/advcl/T1 . | D1/det/N1 N1/nsubj/T1 T1/root C=a/case/N2 D2/det/N2 \
N2/obj/T1 W=porque/mark/J1 R1/nsubj/J1 X1/cop/J1 J1/advcl/T1 .
1 person, 2 person | D1/det/N1 N1/nsubj/T1 T1/root D2/det/N2 N2/obj/T1 W=because/mark/J2 \
R2/nsubj/J2 X2/cop/J2 J2/advcl/T1 . | D1/det/N1 N1/nsubj/T1 T1/root C=a/case/N2 D2/det/N2 \
N2/obj/T1 W=porque/mark/J2 R2/nsubj/J2 X2/cop/J2 J2/advcl/T1 .
1 person, 2 animal | D1/det/N1 N1/nsubj/V1 V1/root D2/det/N2 N2/obj/V1 W=when/mark/I2 \
R2/nsubj/I2 I2/advcl/V1 . | D1/det/N1 N1/nsubj/V1 V1/root C=a/case/N2 D2/det/N2 N2/obj/V1 \
W=cuando/mark/I2 R2/nsubj/I2 I2/advcl/V1 .
1 person, 2 person | W=after/mark/T1 D1/det/N1 N1/nsubj/T1 T1/advcl/J1 D2/det/N2 \
N2/obj/T1 , R1/nsubj/J1 X1/cop/J1 J1/root . | W=cuando/mark/T1 D1/det/N1 N1/nsubj/T1 T1/advcl/J1 \
C=a/case/N2 D2/det/N2 N2/obj/T1 , R1/nsubj/J1 X1/cop/J1 J1/root .
1 person, 2 person | D1/det/N1 N1/nsubj/E1 E1/root D2/det/N2 N2/nsubj/I2 I2/ccomp/E1 \
K=and/cc/I1 R1/nsubj/I1 I1/conj/E1 . | D1/det/N1 N1/nsubj/E1 E1/root W=que/mark/I2 D2/det/N2 \
N2/nsubj/I2 I2/ccomp/E1 K=y/cc/I1 R1/nsubj/I1 I1/conj/E1 .
1 being, 2 thing | D1/det/N1 N1/nsubj/I1 W=that/nsubj/V1 V1/acl:relcl/N1 D2/det/N2 N2/obj/V1 \
I1/root . | D1/det/N1 N1/nsubj/I1 W=que/nsubj/V1 V1/acl:relcl/N1 D2/det/N2 N2/obj/V1 I1/root .
1 thing, 2 being | D1/det/N1 N1/nsubj/J1 W=that/obj/T2 D2/det/N2 N2/nsubj/T2 T2/acl:relcl/N1 \
X1/cop/J1 J1/root . | D1/det/N1 N1/nsubj/J1 W=que/obj/T2 D2/det/N2 N2/nsubj/T2 T2/acl:relcl/N1 \
X1/cop/J1 J1/root .
1 being, 2 being | D1/det/N1 N1/nsubj/I1 I1/root K=and/cc/I2 D2/det/N2 N2/nsubj/I2 I2/conj/I1 . \
| D1/det/N1 N1/nsubj/I1 I1/root K=y/cc/I2 D2/det/N2 N2/nsubj/I2 I2/conj/I1 .
1 being, 2 being | W=if/mark/I1 D1/det/N1 N1/nsubj/I1 I1/advcl/I2 , D2/det/N2 A2/amod/N2 \
N2/nsubj/I2 I2/root . | W=si/mark/I1 D1/det/N1 N1/nsubj/I1 I1/advcl/I2 , D2/det/N2 \
N2/nsubj/I2 A2/amod/N2 I2/root .
1 being | D1/det/N1 N1/nsubj/I1 Z=never~always/neg/I1 I1/root . \
| D1/det/N1 N1/nsubj/I1 Z=nunca~siempre/neg/I1 I1/root .
1 being, 2 thing | D1/det/N1 N1/nsubj/V1 Z=never~often/neg/V1 V1/root D2/det/N2 N2/obj/V1 . \
| D1/det/N1 N1/nsubj/V1 Z=no~ya/neg/V1 V1/root D2/det/N2 N2/obj/V1 .
1 being, 2 thing | D1/det/N1 N1/nsubj/I1 I1/root Z=without~with/neg/N2 D2/det/N2 N2/obl/I1 . \
| D1/det/N1 N1/nsubj/I1 I1/root Z=sin~con/neg/N2 D2/det/N2 N2/obl/I1 .
1 being | D1/det/N1 N1/nsubj/M1 H1/aux/M1 Z=not~also/neg/M1 M1/root . \
| D1/det/N1 N1/nsubj/M1 Z=no~ya/neg/M1 H1/aux/M1 M1/root .
1 being | D1/det/N1 N1/nsubj/J1 X1/cop/J1 Z=not~very/neg/J1 J1/root . \
| D1/det/N1 N1/nsubj/J1 Z=no~ya/neg/J1 X1/cop/J1 J1/root .
1 thing, 2 being | D1/det/N1 N1/nsubj:pass/G1 X1/aux:pass/G1 G1/root C=by/case/N2 D2/det/N2 \
N2/obl:agent/G1 . | D1/det/N1 N1/nsubj:pass/G1 F1/aux:pass/G1 G1/root C=por/case/N2 D2/det/N2 \
N2/obl:agent/G1 .
1 person, 2 thing | D1/det/N1 N1/nsubj/T1 T1/root S12/nmod:poss/N2 N2/obj/T1 . \
| D1/det/N1 N1/nsubj/T1 T1/root S12/det/N2 N2/obj/T1 .
1 being | D1/det/N1 N1/nsubj/J1 X1/cop/J1 B=very/advmod/J1 J1/root . \
| D1/det/N1 N1/nsubj/J1 X1/cop/J1 B=muy/advmod/J1 J1/root .
1 animal, 2 drink | D1/det/N1 N1/nsubj/L1 L1/root D2/det/N2 N2/obj/L1 W=because/mark/J \
R1/nsubj/J X1/cop/J J=thirsty/advcl/L1 . | D1/det/N1 N1/nsubj/L1 L1/root D2/det/N2 N2/obj/L1 \
W=porque/mark/Y1 Y1/advcl/L1 O=sed/obj/Y1 .
"""
NOUNS = """
person m man men hombre hombres, person f woman women mujer mujeres
person f girl girls niña niñas, person m boy boys niño niños, person f queen queens reina reinas
person m king kings rey reyes, person f mother mothers madre madres
person m father fathers padre padres, person f aunt aunts tía tías, person m uncle uncles tío tíos
person f sister sisters hermana hermanas, person m brother brothers hermano hermanos
animal m dog dogs perro perros, animal m cat cats gato gatos, animal f cow cows vaca vacas
animal m horse horses caballo caballos, animal f hen hens gallina gallinas
animal m duck ducks pato patos, animal f goat goats cabra cabras, animal m wolf wolves lobo lobos
thing m book books libro libros, thing f table tables mesa mesas
thing f letter letters carta cartas, thing f box boxes caja cajas, thing f key keys llave llaves
thing m hat hats sombrero sombreros, thing f chair chairs silla sillas
thing m picture pictures cuadro cuadros, place f house houses casa casas
place m garden gardens jardín jardines, place f street streets calle calles
place f kitchen kitchens cocina cocinas, place m park parks parque parques
place f city cities ciudad ciudades, drink f milk milk leche leche
drink m coffee coffee café café, drink m juice juice zumo zumo, drink f beer beer cerveza cerveza
drink m wine wine vino vino
"""
# With an object: base, third person, past, participle; singular, plural, both past, participle.
ACTS = """
see sees saw seen ve ven vio vieron vist
find finds found found encuentra encuentran encontró encontraron encontrad
call calls called called llama llaman llamó llamaron llamad
follow follows followed followed sigue siguen siguió siguieron seguid
help helps helped helped ayuda ayudan ayudó ayudaron ayudad
push pushes pushed pushed empuja empujan empujó empujaron empujad
watch watches watched watched mira miran miró miraron mirad
carry carries carried carried lleva llevan llevó llevaron llevad
"""
MOVES = """
sleep sleeps duerme duermen dormir, run runs corre corren correr, sing sings canta cantan cantar
walk walks camina caminan caminar, cry cries llora lloran llorar, play plays juega juegan jugar
laugh laughs ríe ríen reír, swim swims nada nadan nadar
"""
LOOKS = """
big grande grande, small pequeño pequeña, old viejo vieja, young joven joven, white blanco blanca
black negro negra, green verde verde, tall alto alta
"""
STATES = """
tired cansado cansada, ready listo lista, ill enfermo enferma, lost perdido perdida
hidden escondido escondida, clean limpio limpia, wet mojado mojada, safe seguro segura
"""
EITHER = {"being": ("person", "animal")}
LANGUAGES = ("en", "es")
MOST = 5000  # sentences read of a file
LONGEST = 1 << 26  # bytes of a file


def _rows(table: str) -> list[list[str]]:
    return [row.split() for row in table.replace("\n", ",").split(",") if row.strip()]


@dataclass(frozen=True)
class Sentence:
    """One sentence with its gold links; words are counted from 0.

    spans: each word's characters in text. relations: (name, dependent, head). corefs: (mention,
    antecedent) of pronouns, and of Spanish verbs whose subject is left out; mentions: the nouns
    it could be. cue: (what is negated, the cue), kept in its twin, where the cue negates nothing.
    names: a template's token -> word, equal in translations.
    """

    text: str
    spans: list[tuple[int, int]]
    relations: list[tuple[str, int, int]] = field(default_factory=list)
    corefs: list[tuple[int, int]] = field(default_factory=list)
    mentions: list[int] = field(default_factory=list)
    cue: tuple[int, int] | None = None
    names: dict[str, int] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        return [self.text[a:b] for a, b in self.spans]


@dataclass(frozen=True)
class _Noun:
    number: int  # 0 singular, 1 plural
    gender: str
    kind: str
    forms: tuple[str, ...]  # en, en plural, es, es plural


def sentences(lang: str = "en", count: int = 400, seed: int = 0) -> list[Sentence]:
    """So many different sentences of the grammar, always the same for a seed."""
    return [both[LANGUAGES.index(_known(lang))] for both in pairs(count, seed)]


def pairs(count: int = 400, seed: int = 0, *, kinds: str = "") -> list[tuple[Sentence, Sentence]]:
    """English sentences and their translations; kinds: only of templates that hold this text."""
    draw, found = random.Random(seed), {}
    usable = [t for t in TEMPLATES.strip().split("\n") if kinds in t]
    for turn in range(50 * count):
        made = _made(usable[turn % len(usable)], draw, negated=draw.random() < 0.5)
        found.setdefault(made[0].text + made[1].text, made)
        if len(found) == count:
            break
    return list(found.values())


def twins(lang: str = "en", count: int = 100, seed: int = 0) -> list[tuple[Sentence, Sentence]]:
    """Sentences with a negation, each with its twin that differs in the cue alone."""
    draw, at = random.Random(seed), LANGUAGES.index(_known(lang))
    usable = [t for t in TEMPLATES.strip().split("\n") if "Z=" in t]
    made = []
    for turn in range(count):
        state = draw.getrandbits(64)
        with_cue, without = (_made(usable[turn % len(usable)], random.Random(state), negated=n)[at]
                             for n in (True, False))
        made.append((with_cue, without))
    return made


def _known(lang: str) -> str:
    if lang not in LANGUAGES:
        raise MiradaError(f"there are no templates in {lang!r}; there are {', '.join(LANGUAGES)}. "
                          "conllu= reads sentences of your own")
    return lang


def _made(template: str, draw: random.Random, negated: bool) -> tuple[Sentence, Sentence]:
    kinds, english, spanish = template.split(" | ")
    nouns, chosen = _nouns(kinds, draw), {}
    one, other = (_sentence(side.split(), n, nouns, chosen, draw, negated)
                  for n, side in enumerate((english, spanish)))
    return one, other


def _nouns(kinds: str, draw: random.Random) -> dict[str, _Noun]:
    """Of two nouns one is plural, or both are singular and of different gender: so a pronoun and
    a verb's number say which is meant."""
    found: dict[str, _Noun] = {}
    for entry in kinds.split(", "):
        index, kind = entry.split()
        among = EITHER.get(kind, (kind,))
        rows = [r for r in _rows(NOUNS) if r[0] in among and all(
            r[2] != n.forms[0] for n in found.values())]
        kind, gender, *forms = draw.choice(rows)
        number = draw.randrange(2) if kind != "drink" else 0
        if index == "2" and kind != "drink":
            other = found["1"]
            alike = gender != other.gender and kind == other.kind == "person" and draw.random() < .5
            number = 0 if alike else 1 - other.number
            if alike:
                found["1"] = _Noun(0, other.gender, other.kind, other.forms)
        found[index] = _Noun(number, gender, kind, tuple(forms))
    return found


def _sentence(tokens: list[str], spanish: int, nouns, chosen: dict, draw, negated) -> Sentence:
    words, names, links = [], {}, []
    for token in tokens:
        name, *link = token.split("/")
        name, _, fixed = name.partition("=")
        if "~" in fixed:
            fixed = fixed.split("~")[not negated]
        form = fixed or _form(name, spanish, nouns, chosen, draw)
        if form == "el" and words and words[-1] in ("a", "de"):  # al, del: one word of two
            words[-1] += "l"
            names[name] = len(words) - 1
            continue
        if name[0].isalpha():
            names[name] = len(words)
            links.append((name, link))
        words.append(form)
    words[0] = words[0].capitalize()
    relations = [(link[0], names[name], names[link[1]]) for name, link in links
                 if len(link) > 1 and (link[0] != "neg" or negated)]
    corefs = [(at, names["N" + name[1]]) for name, at in names.items() if name[0] in "RSY"]
    cue = next(((names[link[1]], names[name]) for name, link in links if name == "Z"), None)
    mentions = [at for name, at in names.items() if name[0] == "N"]
    return Sentence(*laid(words), relations, corefs, mentions, cue, names)


def laid(words: list[str]) -> tuple[str, list[tuple[int, int]]]:
    text, spans = "", []
    for word in words:
        text += " " if text and word not in ",." else ""
        spans.append((len(text), len(text) + len(word)))
        text += word
    return text, spans


def _form(name: str, spanish: int, nouns: dict[str, _Noun], chosen: dict, draw) -> str:
    """The form of a token that agrees with its noun."""
    kind = name[0]
    if kind in ",.":
        return name
    noun = nouns[name[1]]
    n, f = noun.number, noun.gender == "f"
    if kind == "N":
        return noun.forms[2 * spanish + n]
    if kind == "D":
        return (("el", "la"), ("los", "las"))[n][f] if spanish else "the"
    if kind == "R":
        return _pronoun(noun, spanish)
    if kind == "S":
        owned = nouns[name[2]].number
        whose = "their" if n else {"person": ("his", "her")[f]}.get(noun.kind, "its")
        return ("su", "sus")[owned] if spanish else whose
    if kind in FIXED:
        return FIXED[kind][2 * spanish + n]
    table = {"A": LOOKS, "J": STATES, "I": MOVES, "M": MOVES}.get(kind, ACTS)
    row = chosen.setdefault((name[1:], table), draw.choice(_rows(table)))
    if kind in "AJ":
        form = row[1 + f] if spanish else row[0]
        return form + ("es" if form[-1] == "n" else "s") * n if spanish else form
    if kind == "G":
        return row[8] + ("a" if f else "o") + "s" * n if spanish else row[3]
    if kind in "VI":
        return row[(4 if kind == "V" else 2) + n] if spanish else row[0 if n else 1]
    if kind == "T":
        return row[6 + n] if spanish else row[2]
    return row[4] if spanish else row[0]  # M


FIXED = {  # en, en plural, es, es plural
    "X": ("was", "were", "estaba", "estaban"), "H": ("can", "can", "puede", "pueden"),
    "E": ("says", "say", "dice", "dicen"), "F": ("was", "were", "fue", "fueron"),
    "L": ("drank", "drank", "bebió", "bebieron"), "Y": ("was", "were", "tenía", "tenían"),
}


def _pronoun(noun: _Noun, spanish: int) -> str:
    f = noun.gender == "f"
    if spanish:
        return (("él", "ella"), ("ellos", "ellas"))[noun.number][f]
    return "they" if noun.number else ("he", "she")[f] if noun.kind == "person" else "it"


def read_conllu(path) -> list[Sentence]:
    """The sentences of a CoNLL-U file, the first MOST; words that one written word stands for
    (del: de el) share its place. Raises UntrustedInputError."""
    from mirada.text.spec import content
    try:
        text = content(Path(path), LONGEST).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UntrustedInputError(path, f"byte {error.start}", "is not UTF-8") from None
    found, block = [], []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.strip():
            block.append((number, line))
        elif block and len(found) < MOST:
            sentence = _parsed(path, [(n, x) for n, x in block if not x.startswith("#")])
            found += [sentence] if sentence.spans else []
            block = []
    if not found:
        raise UntrustedInputError(path, "content", "holds no sentence in CoNLL-U")
    return found


def _parsed(path, lines: list[tuple[int, str]]) -> Sentence:
    text, spans, rows, until = "", [], [], 0
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != 10:
            raise UntrustedInputError(path, f"line {number}", "must have 10 columns set apart by "
                                      f"tabs, and has {len(cells)}")
        first, _, last = cells[0].partition("-")
        if "." in first:  # a word that is not written
            continue
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise UntrustedInputError(path, f"line {number}", f"{first!r} is no word's number")
        if last or int(first) > until:
            span = (len(text), len(text) + len(cells[1]))
            text += cells[1] + ("" if "SpaceAfter=No" in cells[9] else " ")
            until = int(last) if last else 0
        if not last:
            if int(first) != len(spans) + 1 or not cells[6].isdecimal():
                raise UntrustedInputError(path, f"line {number}", "its number or its head's is "
                                          "not a count from 1")
            spans.append(span)
            rows.append((number, cells[7], int(cells[6])))
    for number, _, head in rows:
        if head > len(spans):
            raise UntrustedInputError(path, f"line {number}", f"its head {head} does not exist")
    relations = [(name, at, head - 1) for at, (_, name, head) in enumerate(rows)
                 if head and spans[at] != spans[head - 1]]
    return Sentence(text.rstrip(), spans, relations)
