"""Training a net (`train`), and quantizing a model of the user's own (`quantize`), by one loop (`loop`)."""
