"""The fused loss compared with other implementations: problems, peers, measurements, tables."""
