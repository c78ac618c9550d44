"""Looking inside: what a model is, what it does with a text, and the guides' ideas measured."""

import importlib

_HOMES = {  # public name -> the file that holds it; nothing is imported until it is used
    "steps": "product", "scaling": "product", "trace": "stages", "sees": "experiments",
    "permute": "experiments", "gradients": "experiments", "neighbors": "embeddings",
    "word_map": "embeddings", "senses": "embeddings", "plane": "embeddings",
    "flow": "paths", "rollout": "paths", "max_flow": "paths", "lens": "logits", "dla": "logits",
    "firing": "neurons", "top_tokens": "neurons", "promoted": "neurons", "neuron_terms": "neurons",
    "redundant": "redundancy", "gradient_attention": "relevance",
    "sweep": "sweeps", "effect": "sweeps", "backup": "sweeps", "path": "sweeps",
    "downstream": "sweeps", "logit_difference": "sweeps", "log_probability": "sweeps",
    "divergence": "sweeps",
    "positions": "plots", "rates": "plots", "costs": "plots",
    "attention_map": "views.maps", "head_view": "views.heads", "model_view": "views.heads",
    "neuron_view": "views.neurons", "next_token": "views.nexts",
    "over_picture": "overlay", "patches": "overlay", "reconstructed": "painting",
    "roles": "heads.report", "claim": "heads.claims", "examples": "heads.claims",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"mirada.look has no {name!r}")
    return getattr(importlib.import_module(f"mirada.look.{_HOMES[name]}"), name)
