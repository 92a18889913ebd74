"""The attention implementations that tests run on: a test that takes `attn` runs on each."""

BACKENDS = ("sdpa", "eager", "flex_attention")
