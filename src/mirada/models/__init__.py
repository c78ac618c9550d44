"""One file a family. This table says which file reads which `model_type`."""

FAMILIES = {  # model_type in a config file -> module here
    "gpt2": "gpt2",
}
GGUF = {  # general.architecture in a GGUF file -> module here
}
