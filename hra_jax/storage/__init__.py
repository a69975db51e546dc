"""What lies on disks and buckets: files, trees of tensors, row logs."""
