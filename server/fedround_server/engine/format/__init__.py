"""safetensors files: the header, the manifest, and reading and writing tensors block by block."""
