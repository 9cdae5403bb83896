"""The fused loss beside other implementations: problems, peers, measurements, tables."""
