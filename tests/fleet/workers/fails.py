"""Cannot be imported."""

print("loading")
raise RuntimeError("no such chip")
