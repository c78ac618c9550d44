// The guides' own sentences, as first things to look at.
import type { RunRequest } from "./schema";
import type { Lang } from "./words";

export const EXAMPLES: Record<Lang, string[]> = {
  es: ["El gato bebió la leche porque tenía sed", "La pizza acaba de salir del horno, estaba rica", "El perro grande corrió rápido",
    "Diego eats pizza", "Pizza eats Diego", "Fui al banco a sacar dinero y luego me senté en un banco del parque"],
  en: ["The cat drank the milk because it was thirsty", "The pizza just came out of the oven, it was delicious", "The big dog ran fast",
    "Diego eats pizza", "Pizza eats Diego", "I went to the bank to get money and then sat on the bank of the river"],
};

/** What is run first; a masked model gets a word to guess from the input screen. */
export const first = (lang: Lang): RunRequest["inputs"] => ({ text: EXAMPLES[lang][0] });
