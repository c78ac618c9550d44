"""Views: what was recorded as one self-contained page, in a notebook or a file, without a network."""
