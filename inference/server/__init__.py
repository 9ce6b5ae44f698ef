"""A model behind HTTP: the endpoints of OpenAI's API, limits, metrics, and the same on many machines."""
