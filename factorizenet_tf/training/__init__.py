"""Train a net (`train`), tune a factorized one (`factorized`), quantize a user's own model (`quantize`), by one `loop`."""
