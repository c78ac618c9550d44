"""Views: what was recorded as one page that needs no network, in a notebook or a file."""
