"""The online lane over HTTP: an OpenAI-compatible gateway whose every call passes through the kernel's one door."""
