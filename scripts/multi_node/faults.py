from dataclasses import dataclass

FAULTS = {}


def run_fault(*a): ...
