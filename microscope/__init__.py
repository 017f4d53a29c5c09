"""Beside the microscope: whole slides and whole fields through a session of the runtime, without PyTorch."""
