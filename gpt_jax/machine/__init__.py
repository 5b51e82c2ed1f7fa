"""On what machine? Devices, processes, signals, terminals, known chips."""
