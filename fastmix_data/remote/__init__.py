"""Shards that lie elsewhere: in an object store or on a shared file system, read through a bounded cache on this machine."""
