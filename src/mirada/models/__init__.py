"""One file a family. This table says which file reads which `model_type`."""

FAMILIES = {  # model_type in a config file -> module here
    "albert": "albert",
    "bart": "bart",
    "bert": "bert",
    "big_bird": "bigbird",
    "bloom": "bloom",
    "camembert": "roberta",
    "deberta": "deberta_v1",  # a family's own name goes before a model_type's
    "deberta-v2": "deberta",
    "distilbert": "distilbert",
    "electra": "electra",
    "esm": "esm",
    "fsmt": "fsmt",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "gpt3": "gpt3",
    "gpt_bigcode": "starcoder",
    "gpt_neo": "gptneo",
    "gpt_neox": "neox",
    "gptj": "gptj",
    "llama": "llama",
    "longformer": "longformer",
    "marian": "transformer",
    "mbart": "mbart",
    "mistral": "llama",
    "mixtral": "mixtral",
    "modernbert": "modernbert",
    "mpt": "mpt",
    "mt5": "t5",
    "openai-gpt": "gpt1",
    "palm": "palm",
    "pegasus": "pegasus",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "roberta": "roberta",
    "starcoder2": "starcoder2",
    "t5": "t5",
    "vit": "vit",
    "xlm-roberta": "roberta",
}
GGUF = {  # general.architecture in a GGUF file -> module here
    "llama": "llama",
}
ALIASES = {  # names people say -> family:size here
}
