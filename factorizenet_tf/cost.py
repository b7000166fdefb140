def count_macs(x): return 0
def count_params(x): return 0
