"""Rules on label maps: what challenge entries do after the network, as pure functions that compose in a JSON file."""
