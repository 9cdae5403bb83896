"""Faults put into real runs: kills, full disks, damaged files, hostile functions, lost ranks and servers."""
