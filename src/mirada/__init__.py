"""mirada: one small Transformer core, and every model of the family built from it."""
