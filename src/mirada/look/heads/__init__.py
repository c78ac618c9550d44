"""What heads do: scores of their patterns, sentences with gold links, and the causal verdict."""
