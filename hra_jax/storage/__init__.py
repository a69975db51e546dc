"""Files on disks and in buckets: atomic writes, JSON, safetensors, trees of tensors, and logs of changed rows."""
