"""Tiny models of random weights, saved as the reference saves them, with a trained tokenizer."""

import functools
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from text.vocabularies import sentences

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHAT = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}")


@functools.cache
def _pieces() -> str:
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    library.train_from_iterator(sentences(400), trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=MARKS, show_progress=False))
    library.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)])
    return library.to_str()


def wordpiece(length: int = 64):
    """A BERT-like tokenizer of the reference."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Library.from_str(_pieces()), model_max_length=length, pad_token="[PAD]",
        unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False)


@functools.cache
def _bytes() -> str:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(sentences(400), trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<user>", "<assistant>"],
        show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return library.to_str()


def byte_level(ends: bool = False):
    """A byte-level tokenizer of the reference; ends: a text gets </s> behind it."""
    library = Library.from_str(_bytes())
    if ends:
        library.post_processor = processors.TemplateProcessing("$A </s>",
                                                               special_tokens=[("</s>", 1)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, model_max_length=128, pad_token="<pad>", eos_token="</s>",
        additional_special_tokens=["<user>", "<assistant>"], clean_up_tokenization_spaces=False)
    made.chat_template = CHAT
    return made


def saved(folder: Path, model, tokenizer) -> str:
    """The model, its weights louder so that its answers differ, and its tokenizer in a folder."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4 if p.ndim > 1 else 1)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def bert(folder: Path, head: str, length: int = 64, tokenizer=None, vocab=None,
         **config) -> str:
    """A BERT with the head Bert`head`."""
    torch.manual_seed(3)
    tokenizer = tokenizer or wordpiece(length)
    made = transformers.BertConfig(
        vocab_size=vocab or len(tokenizer), hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=48, max_position_embeddings=64, **config)
    return saved(folder, getattr(transformers, "Bert" + head)(made), tokenizer)


def gpt2(folder: Path) -> str:
    torch.manual_seed(4)
    config = transformers.GPT2Config(
        vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=1,
        bos_token_id=1, pad_token_id=0)
    return saved(folder, transformers.GPT2LMHeadModel(config), byte_level())


def t5(folder: Path, **config) -> str:
    torch.manual_seed(5)
    made = transformers.T5Config(
        vocab_size=400, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **config)
    return saved(folder, transformers.T5ForConditionalGeneration(made), byte_level(ends=True))


def longformer(folder: Path, **config) -> str:
    """A classifier with room for 2,048 tokens, whose layers look 8 to each side."""
    torch.manual_seed(6)
    made = transformers.LongformerConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=2051, attention_window=[16, 16],
        pad_token_id=0, sep_token_id=3, bos_token_id=2, eos_token_id=3, type_vocab_size=1,
        **config)
    tokenizer = wordpiece(2048)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    made.vocab_size = len(tokenizer)
    return saved(folder, transformers.LongformerForSequenceClassification(made), tokenizer)


def near(ours, theirs, path: str = "") -> None:
    """Equal in shape, keys and words; numbers to rounding."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict) and [*ours] == [*theirs], (path, ours, theirs)
        for key in theirs:
            near(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(theirs, list):
        assert isinstance(ours, list) and len(ours) == len(theirs), (path, ours, theirs)
        for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            near(a, b, f"{path}[{n}]")
    elif isinstance(theirs, str | int):
        assert type(ours) is type(theirs) and ours == theirs, (path, ours, theirs)
    else:
        assert abs(float(ours) - float(theirs)) <= 2e-5 * max(1, abs(theirs)), (path, ours, theirs)
