"""What runs a model: TransformerLens and plain hooks here, or nnsight."""
