"""One file a family. This table says which file reads which `model_type`."""

FAMILIES = {  # model_type in a config file -> module here
    "bert": "bert",
    "deberta-v2": "deberta",
    "gpt2": "gpt2",
    "gpt_neox": "neox",
    "llama": "llama",
    "mistral": "llama",
    "mt5": "t5",
    "t5": "t5",
    "vit": "vit",
}
GGUF = {  # general.architecture in a GGUF file -> module here
    "llama": "llama",
}
ALIASES = {  # names people say -> family:size here
    "gpt3:175b": "gpt2:gpt3-175b",
}
