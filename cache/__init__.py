"""The ground: what lies on disk and how it is trusted. numpy, pyarrow and zarr; no torch, no model, no clock."""
