"""Architectures of transformers, tiny, built from a config: no network, no weights."""

import torch

TEXT = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
DECODER = {**TEXT, "num_key_value_heads": 2, "head_dim": 8, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8, "num_labels": 5,
}  # fmt: skip
EXPERTS = {**DECODER, "num_experts_per_tok": 2, "experts_implementation": "eager"}  # grouped products know no float64


def tokens(length=10, vocabulary=60):
    return torch.randint(3, vocabulary, (2, length))


def text():
    return {"input_ids": tokens(), "attention_mask": torch.ones(2, 10, dtype=torch.long)}


def decoder():
    return {"input_ids": tokens()}


def both():
    return {"input_ids": tokens(), "decoder_input_ids": tokens(6)}


def image(size=32):
    return lambda: {"pixel_values": torch.randn(2, 3, size, size)}


def speech(length=800):
    return lambda: {"input_values": torch.randn(2, length)}


def whisper():
    return {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": tokens(6)}


def clip():
    return {"input_ids": tokens(8), "pixel_values": torch.randn(2, 3, 32, 32)}


# fmt: off
LAYERS = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4
}
SEQ2SEQ = {
    **LAYERS, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 64, "max_position_embeddings": 32, "use_cache": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": None
}
WHISPER = {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 16}
T5 = {
    "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "use_cache": False,
    "decoder_start_token_id": 0
}
GPT2 = {
    "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False, "bos_token_id": 1,
    "eos_token_id": 2
}
GPT_NEO = {
    "vocab_size": 64, "hidden_size": 32, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4,
    "max_position_embeddings": 32, "use_cache": False, "window_size": 4
}
XLM = {
    "vocab_size": 64, "n_words": 64, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 32, "pad_index": 0
}
DISTIL = {
    "vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 32, "pad_token_id": 0
}
WAV = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 20,
    "conv_dim": (16, 16, 16), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 8), "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0
}
SWIN = {
    "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, "num_labels": 5
}
PYRAMID = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_labels": 5}
SIDES = {
    "text_config": {**TEXT, "bos_token_id": 1, "eos_token_id": 2, "projection_dim": 16},
    "vision_config": {**VISION, "projection_dim": 16}, "projection_dim": 16
}
MOBILEBERT = {
    **TEXT, "embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 2, "true_hidden_size": 16
}
MODERNBERT = {**TEXT, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
ESM = {**TEXT, "mask_token_id": 3, "position_embedding_type": "rotary"}
FUNNEL = {
    "vocab_size": 64, "block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64
}
DEBERTA = {
    **TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16, "position_buckets": 8
}
MAMBA = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "use_cache": False}
LEVIT = {
    "image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 4, 6], "depths": [1, 1, 1], "key_dim": [8, 8, 8],
    "num_labels": 5, "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 4, 4, 2, 2]]
}
MOBILEVIT = {
    "image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "num_attention_heads": 4,
    "num_labels": 5
}
RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "layer_type": "basic", "num_labels": 5}

MODELS = {  # name -> (class of transformers, fields of its config, inputs)
    "bert": ("BertForMaskedLM", TEXT, text),
    "bert_classifier": ("BertForSequenceClassification", TEXT, text),
    "roberta": ("RobertaForMaskedLM", TEXT, text),
    "albert": ("AlbertForMaskedLM", {**TEXT, "embedding_size": 16}, text),
    "distilbert": ("DistilBertForMaskedLM", DISTIL, text),
    "electra": ("ElectraForPreTraining", {**TEXT, "embedding_size": 16}, text),
    "deberta": ("DebertaForMaskedLM", DEBERTA, text),
    "deberta_v2": ("DebertaV2ForMaskedLM", DEBERTA, text),
    "mpnet": ("MPNetForMaskedLM", TEXT, text),
    "mobilebert": ("MobileBertForMaskedLM", MOBILEBERT, text),
    "funnel": ("FunnelForMaskedLM", FUNNEL, text),
    "xlm": ("XLMWithLMHeadModel", XLM, decoder),
    "esm": ("EsmForMaskedLM", ESM, text),
    "modernbert": ("ModernBertForMaskedLM", MODERNBERT, text),
    "xlm_roberta": ("XLMRobertaForMaskedLM", TEXT, text),
    "fnet": ("FNetForMaskedLM", {**TEXT, "tpu_short_seq_length": 10}, decoder),
    "gpt2": ("GPT2LMHeadModel", GPT2, decoder),
    "gpt_neo": ("GPTNeoForCausalLM", GPT_NEO, decoder),
    "gpt_neox": ("GPTNeoXForCausalLM", {**TEXT, "use_cache": False}, decoder),
    "gptj": ("GPTJForCausalLM", {**GPT2, "rotary_dim": 4}, decoder),
    "opt": ("OPTForCausalLM", {**TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32, "use_cache": False}, decoder),
    "bloom": ("BloomForCausalLM", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False}, text),
    "falcon": ("FalconForCausalLM", {**TEXT, "use_cache": False}, decoder),
    "llama": ("LlamaForCausalLM", DECODER, decoder),
    "mistral": ("MistralForCausalLM", DECODER, decoder),
    "mixtral": ("MixtralForCausalLM", {**EXPERTS, "num_local_experts": 4}, decoder),
    "qwen2": ("Qwen2ForCausalLM", DECODER, decoder),
    "qwen3": ("Qwen3ForCausalLM", DECODER, decoder),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32}, decoder),
    "gemma": ("GemmaForCausalLM", DECODER, decoder),
    "gemma2": ("Gemma2ForCausalLM", DECODER, decoder),
    "gemma3": ("Gemma3ForCausalLM", DECODER, decoder),
    "phi": ("PhiForCausalLM", DECODER, decoder),
    "phi3": ("Phi3ForCausalLM", DECODER, decoder),
    "olmo": ("OlmoForCausalLM", DECODER, decoder),
    "stablelm": ("StableLmForCausalLM", DECODER, decoder),
    "mamba": ("MambaForCausalLM", MAMBA, decoder),
    "t5": ("T5ForConditionalGeneration", T5, both),
    "t5_gated": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}, both),
    "bart": ("BartForConditionalGeneration", SEQ2SEQ, both),
    "pegasus": ("PegasusForConditionalGeneration", SEQ2SEQ, both),
    "whisper": ("WhisperForConditionalGeneration", WHISPER, whisper),
    "wav2vec2": ("Wav2Vec2ForCTC", WAV, speech()),
    "hubert": ("HubertForCTC", WAV, speech()),
    "vit": ("ViTForImageClassification", VISION, image()),
    "deit": ("DeiTForImageClassification", VISION, image()),
    "beit": ("BeitForImageClassification", VISION, image()),
    "dinov2": ("Dinov2ForImageClassification", VISION, image()),
        "clip": ("CLIPModel", SIDES, clip),
    "siglip": ("SiglipModel", SIDES, clip),
    "swin": ("SwinForImageClassification", SWIN, image()),
    "swinv2": ("Swinv2ForImageClassification", SWIN, image()),
    "convnext": ("ConvNextForImageClassification", PYRAMID, image(64)),
    "convnextv2": ("ConvNextV2ForImageClassification", PYRAMID, image(64)),
    "resnet": ("ResNetForImageClassification", RESNET, image()),
    "segformer": ("SegformerForSemanticSegmentation",
        {**PYRAMID, "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 32}, image(64)),
    "mobilevit": ("MobileViTForImageClassification", MOBILEVIT, image(64)),
    "levit": ("LevitForImageClassification", LEVIT, image(64)),
    "poolformer": ("PoolFormerForImageClassification", PYRAMID, image(64)),
    "pvt": ("PvtForImageClassification", {**PYRAMID, "image_size": 64, "num_attention_heads": [1, 2, 2, 4]}, image(64)),
}
# fmt: on


def make(name):
    import transformers

    kind, fields, inputs = MODELS[name]
    model = getattr(transformers, kind)
    return model(model.config_class(**fields)), (), inputs()
