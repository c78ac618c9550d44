"""One file a family. This table says which file reads which `model_type`."""

FAMILIES = {  # model_type in a config file -> module here
    "bert": "bert",
    "bloom": "bloom",
    "deberta-v2": "deberta",
    "gpt2": "gpt2",
    "gpt_neo": "gptneo",
    "gpt_neox": "neox",
    "gptj": "gptj",
    "llama": "llama",
    "mistral": "llama",
    "mpt": "mpt",
    "mt5": "t5",
    "openai-gpt": "gpt1",
    "t5": "t5",
    "vit": "vit",
}
GGUF = {  # general.architecture in a GGUF file -> module here
    "llama": "llama",
}
ALIASES = {  # names people say -> family:size here
    "gpt3:175b": "gpt2:gpt3-175b",
}
