"""What a run will need, before anything of it is allocated: memory, bytes on the wire, time."""
