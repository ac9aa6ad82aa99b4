"""The engine: it names no particular method, corpus or eval."""
