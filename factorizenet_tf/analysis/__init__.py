"""What quantization does to each layer, and how the levels compare."""
