"""A BERT whose layers differ in attention heads and feed-forward columns, for transformers with trust_remote_code=True.

`prune-jax export --shrink` copies this file beside the weights. A head is hidden_size // num_attention_heads wide.
In config.json, layer_heads and layer_ffn count the heads and the columns of each layer, 0 or more, and pooler_width
counts the units of the pooler.
"""

from torch import nn
from transformers import BertForSequenceClassification, BertModel


def _shrink(bert: BertModel) -> None:
    config = bert.config
    for layer, heads, columns in zip(bert.encoder.layer, config.layer_heads, config.layer_ffn, strict=True):
        attention = layer.attention.self
        attention.num_attention_heads = heads
        attention.all_head_size = width = heads * attention.attention_head_size
        for name in ("query", "key", "value"):
            setattr(attention, name, nn.Linear(config.hidden_size, width))
        layer.attention.output.dense = nn.Linear(width, config.hidden_size)
        layer.intermediate.dense = nn.Linear(config.hidden_size, columns)
        layer.output.dense = nn.Linear(columns, config.hidden_size)
    if bert.pooler is not None:
        bert.pooler.dense = nn.Linear(config.hidden_size, config.pooler_width)


class ShrunkBertModel(BertModel):
    def __init__(self, config, add_pooling_layer=True):
        super().__init__(config, add_pooling_layer)
        _shrink(self)


class ShrunkBertForSequenceClassification(BertForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        _shrink(self.bert)
        self.classifier = nn.Linear(config.pooler_width, config.num_labels)
