"""Between Dynamo and TorchAir: AOTAutograd as TorchAir runs it, and guards on the graphs it makes."""
