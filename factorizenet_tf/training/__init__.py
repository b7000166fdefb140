"""A training of a net, and of a model of one's own."""
