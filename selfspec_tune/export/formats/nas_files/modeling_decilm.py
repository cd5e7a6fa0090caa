"""A Llama some of whose layers lack their attention or their MLP."""

import torch
from torch import nn
from transformers import LlamaForCausalLM

from .configuration_decilm import DeciLMConfig


class NoAttention(nn.Module):
    """Adds nothing to the residual stream."""

    def forward(self, hidden_states, **_):
        return torch.zeros_like(hidden_states), None


class NoFFN(nn.Module):
    """Adds nothing to the residual stream."""

    def forward(self, hidden_states):
        return torch.zeros_like(hidden_states)


class DeciLMForCausalLM(LlamaForCausalLM):
    """Layers as ``block_configs`` say; keys and values are kept by attentions alone, numbered in running order."""

    config_class = DeciLMConfig

    def __init__(self, config):
        super().__init__(config)
        num_attentions = 0
        for layer, block in zip(self.model.layers, config.block_configs, strict=True):
            if block.attention.no_op:
                layer.self_attn, layer.input_layernorm = NoAttention(), nn.Identity()
            else:
                layer.self_attn.layer_idx = num_attentions
                num_attentions += 1
                if config.qkv_bias:
                    for name in ("q_proj", "k_proj", "v_proj"):
                        old = getattr(layer.self_attn, name)
                        setattr(layer.self_attn, name, nn.Linear(old.in_features, old.out_features, bias=True))
            if block.ffn.no_op:
                layer.mlp, layer.post_attention_layernorm = NoFFN(), nn.Identity()
