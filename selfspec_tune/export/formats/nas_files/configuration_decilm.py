"""Configuration of a model some of whose layers lack their attention or their MLP."""

from transformers import LlamaConfig


class Choice(dict):
    """A mapping whose entries are attributes too, as runtimes read them."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


class DeciLMConfig(LlamaConfig):
    """A Llama's, with ``block_configs``: for every layer what its attention and its FFN are."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs=None, qkv_bias=False, **settings):
        super().__init__(**settings)
        self.qkv_bias = qkv_bias
        self.block_configs = [
            Choice(attention=Choice(block["attention"]), ffn=Choice(block["ffn"])) for block in block_configs or []
        ]
