"""Folders as encoders are published, tiny and random: config.json, model.safetensors, preprocessor and tokenizer.

The names of the tensors are written out here by hand, family by family, from the published files; nothing of
`hra_jax.convert` is used.
"""

import json

import ml_dtypes  # noqa: F401  (numpy then knows bfloat16)
import numpy as np
from safetensors.numpy import load_file, save_file

D, HEADS, FF, LAYERS, KERNEL, V = 8, 2, 12, 2, 3, 6
SPACE = "\u2581"
SEAMLESS_FEATURES = {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "num_mel_bins": 80, "stride": 2}
WAVE_FEATURES = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "do_normalize": True}


def _linear(name, inputs, outputs, bias=True):
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name, width=D, bias=True):
    return {f"{name}.weight": (width,)} | ({f"{name}.bias": (width,)} if bias else {})


def _batch_norm(name):
    statistics = {f"{name}.running_mean": (D,), f"{name}.running_var": (D,), f"{name}.num_batches_tracked": ()}
    return _norm(name) | statistics


def _meta_block(layer, position, batch_norm):
    """A block as Meta's encoders name it."""
    found = {}
    for name in ("ffn1_layer_norm", "self_attn_layer_norm", "ffn2_layer_norm", "final_layer_norm"):
        found |= _norm(f"{layer}.{name}")
    for name in ("ffn1", "ffn2"):
        found |= _linear(f"{layer}.{name}.intermediate_dense", D, FF) | _linear(f"{layer}.{name}.output_dense", FF, D)
    for name in "q", "k", "v", "out":
        found |= _linear(f"{layer}.self_attn.linear_{name}", D, D)
    if position == "relative_key":
        found |= {f"{layer}.self_attn.distance_embedding.weight": (4 + 2 + 1, D // HEADS)}
    if position == "relative":
        found |= _linear(f"{layer}.self_attn.linear_pos", D, D, bias=False)
        found |= {f"{layer}.self_attn.pos_bias_{letter}": (HEADS, D // HEADS) for letter in "uv"}
    convolution = f"{layer}.conv_module"
    found |= _norm(f"{convolution}.layer_norm")
    found |= {
        f"{convolution}.pointwise_conv1.weight": (2 * D, D, 1),
        f"{convolution}.depthwise_conv.weight": (D, 1, KERNEL),
        f"{convolution}.pointwise_conv2.weight": (D, D, 1),
    }
    norm = _batch_norm if batch_norm else _norm
    return found | norm(f"{convolution}.{'batch_norm' if batch_norm else 'depthwise_layer_norm'}")


def _nvidia_block(layer, bias, norm_bias):
    """A block as Parakeet and LASR name it."""
    found = {}
    for name in ("norm_feed_forward1", "norm_self_att", "norm_conv", "norm_feed_forward2", "norm_out"):
        found |= _norm(f"{layer}.{name}", bias=norm_bias)
    for name in ("feed_forward1", "feed_forward2"):
        found |= _linear(f"{layer}.{name}.linear1", D, FF, bias) | _linear(f"{layer}.{name}.linear2", FF, D, bias)
    for letter in "qkvo":
        found |= _linear(f"{layer}.self_attn.{letter}_proj", D, D, bias)
    shapes = {"pointwise_conv1": (2 * D, D, 1), "depthwise_conv": (D, 1, KERNEL), "pointwise_conv2": (D, D, 1)}
    for name, shape in shapes.items():
        found |= {f"{layer}.conv.{name}.weight": shape} | ({f"{layer}.conv.{name}.bias": shape[:1]} if bias else {})
    return found | _batch_norm(f"{layer}.conv.norm")


def _meta_config(model_type, architecture, position):
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "hidden_size": D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FF,
        "conv_depthwise_kernel_size": KERNEL,
        "hidden_act": "swish",
        "position_embeddings_type": position,
        "left_max_position_embeddings": 4,
        "right_max_position_embeddings": 2,
        "vocab_size": V,
        "pad_token_id": 0,
        "mask_time_prob": 0.05,
    }


def w2v_bert(position="relative_key", head=True):
    """(config, shapes, preprocessor): w2v-BERT 2.0, with the head of a CTC fine-tune or bare."""
    prefix = "wav2vec2_bert." if head else ""
    shapes = _norm(f"{prefix}feature_projection.layer_norm", 160)
    shapes |= _linear(f"{prefix}feature_projection.projection", 160, D)
    shapes |= {f"{prefix}masked_spec_embed": (D,)}
    for layer in range(LAYERS):
        shapes |= _meta_block(f"{prefix}encoder.layers.{layer}", position, batch_norm=False)
    if head:
        shapes |= _linear("lm_head", D, V)
    config = _meta_config("wav2vec2-bert", "Wav2Vec2BertForCTC" if head else "Wav2Vec2BertModel", position)
    return config | ({} if head else {"vocab_size": None}), shapes, SEAMLESS_FEATURES | {"padding_value": 1}


def w2v_conformer(position="relative", head=True):
    """(config, shapes, preprocessor): wav2vec2-conformer, with a CTC head or as pre-training leaves it."""
    prefix, channels = "wav2vec2_conformer.", 16
    shapes = {}
    for index, taps in enumerate((10, 3, 3, 3, 3, 2, 2)):
        layer = f"{prefix}feature_extractor.conv_layers.{index}"
        shapes |= {f"{layer}.conv.weight": (channels, 1 if index == 0 else channels, taps)}
        shapes |= {f"{layer}.conv.bias": (channels,)} | _norm(f"{layer}.layer_norm", channels)
    shapes |= _norm(f"{prefix}feature_projection.layer_norm", channels)
    shapes |= _linear(f"{prefix}feature_projection.projection", channels, D) | {f"{prefix}masked_spec_embed": (D,)}
    shapes |= {
        f"{prefix}encoder.pos_conv_embed.conv.bias": (D,),
        f"{prefix}encoder.pos_conv_embed.conv.weight_g": (1, 1, 4),
        f"{prefix}encoder.pos_conv_embed.conv.weight_v": (D, 2, 4),
    }
    if position == "rotary":
        shapes |= {f"{prefix}encoder.embed_positions.inv_freq": (D // HEADS // 2,)}
    for layer in range(LAYERS):
        shapes |= _meta_block(f"{prefix}encoder.layers.{layer}", position, batch_norm=True)
    shapes |= _norm(f"{prefix}encoder.layer_norm")
    if head:
        shapes |= _linear("lm_head", D, V)
    else:
        shapes |= _linear("project_hid", D, 4) | _linear("project_q", 4, 4) | {"quantizer.codevectors": (1, 4, 2)}
    architecture = "Wav2Vec2ConformerForCTC" if head else "Wav2Vec2ConformerForPreTraining"
    config = _meta_config("wav2vec2-conformer", architecture, position)
    config |= {"conv_dim": [channels] * 7, "feat_extract_norm": "layer", "conv_bias": True}
    config |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 4}
    return config, shapes, WAVE_FEATURES


def seamless(whole=True):
    """(config, shapes, preprocessor): SeamlessM4T v2 with a few tensors of its other parts, or its speech encoder."""
    prefix = "speech_encoder." if whole else ""
    shapes = _norm(f"{prefix}feature_projection.layer_norm", 160)
    shapes |= _linear(f"{prefix}feature_projection.projection", 160, D)
    for layer in range(LAYERS):
        shapes |= _meta_block(f"{prefix}encoder.layers.{layer}", "relative_key", batch_norm=False)
    shapes |= _norm(f"{prefix}encoder.layer_norm") | _norm(f"{prefix}inner_layer_norm")
    shapes |= _linear(f"{prefix}intermediate_ffn.intermediate_dense", D, FF)
    shapes |= _norm(f"{prefix}adapter.layers.0.residual_layer_norm")
    if whole:
        shapes |= {"shared.weight": (10, D), "text_encoder.layer_norm.weight": (D,), "vocoder.conv.weight": (3,)}
    config = {
        "model_type": "seamless_m4t_v2",
        "architectures": ["SeamlessM4Tv2Model" if whole else "SeamlessM4Tv2SpeechEncoder"],
        "hidden_size": D,
        "speech_encoder_layers": LAYERS,
        "speech_encoder_attention_heads": HEADS,
        "speech_encoder_intermediate_size": FF,
        "conv_depthwise_kernel_size": KERNEL,
        "left_max_position_embeddings": 4,
        "right_max_position_embeddings": 2,
        "speech_encoder_chunk_size": 5,
        "speech_encoder_left_chunk_num": 1,
        "vocab_size": 256102,
    }
    return config, shapes, SEAMLESS_FEATURES


def parakeet(bias=True):
    """(config, shapes, preprocessor): Parakeet CTC."""
    channels, bins = 3, 16
    shapes = {}
    for index, shape in {0: (3, 1, 3, 3), 2: (3, 1, 3, 3), 3: (3, 3, 1, 1), 5: (3, 1, 3, 3), 6: (3, 3, 1, 1)}.items():
        layer = f"encoder.subsampling.layers.{index}"
        shapes |= {f"{layer}.weight": shape, f"{layer}.bias": (channels,)}
    shapes |= _linear("encoder.subsampling.linear", channels * bins // 8, D)
    for layer in range(LAYERS):
        name = f"encoder.layers.{layer}"
        shapes |= _nvidia_block(name, bias, norm_bias=True)
        shapes |= _linear(f"{name}.self_attn.relative_k_proj", D, D, bias=False)
        shapes |= {f"{name}.self_attn.bias_{letter}": (HEADS, D // HEADS) for letter in "uv"}
    shapes |= {"ctc_head.weight": (V, D, 1), "ctc_head.bias": (V,)}
    inner = {
        "hidden_size": D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FF,
        "conv_kernel_size": KERNEL,
        "num_mel_bins": bins,
        "subsampling_conv_channels": channels,
        "attention_bias": bias,
        "convolution_bias": bias,
    }
    config = {"model_type": "parakeet_ctc", "architectures": ["ParakeetForCTC"], "vocab_size": V, "pad_token_id": V - 1}
    return config | {"encoder_config": inner}, shapes, {"feature_size": bins}


def lasr():
    """(config, shapes, preprocessor): LASR CTC (MedASR)."""
    channels, bins = 4, 128
    shapes = _linear("encoder.subsampler.dense_0", bins, D) | _linear("encoder.subsampler.dense_1", channels, D)
    shapes |= {"encoder.subsampler.conv_0.weight": (D, D, 5), "encoder.subsampler.conv_0.bias": (D,)}
    shapes |= {"encoder.subsampler.conv_1.weight": (channels, D, 5), "encoder.subsampler.conv_1.bias": (channels,)}
    for layer in range(LAYERS):
        shapes |= _nvidia_block(f"encoder.layers.{layer}", bias=False, norm_bias=False)
    shapes |= _norm("encoder.out_norm", bias=False)
    shapes |= {"ctc_head.weight": (V, D, 1), "ctc_head.bias": (V,)}
    inner = {
        "hidden_size": D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FF,
        "conv_kernel_size": KERNEL,
        "subsampling_conv_channels": channels,
    }
    config = {"model_type": "lasr_ctc", "architectures": ["LasrForCTC"], "vocab_size": V, "pad_token_id": 0}
    return config | {"encoder_config": inner}, shapes, {"feature_size": bins}


FAMILIES = {
    "w2v-bert shaw": w2v_bert,
    "w2v-bert xl": lambda: w2v_bert("relative"),
    "w2v-bert rotary": lambda: w2v_bert("rotary"),
    "w2v-bert none": lambda: w2v_bert(None),
    "w2v-bert bare": lambda: w2v_bert(head=False),
    "conformer rel-pos": w2v_conformer,
    "conformer rope": lambda: w2v_conformer("rotary"),
    "conformer pre-training": lambda: w2v_conformer(head=False),
    "seamless": seamless,
    "seamless encoder": lambda: seamless(whole=False),
    "parakeet": parakeet,
    "parakeet without biases": lambda: parakeet(bias=False),
    "lasr": lasr,
}
BATCH_NORM = (
    "conformer rel-pos",
    "conformer rope",
    "conformer pre-training",
    "parakeet",
    "parakeet without biases",
    "lasr",
)


def random_tensors(shapes, seed=0):
    """Values for the shapes: none zero or one, variances positive."""
    rng, found = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            found[name] = np.array(7, np.int64)
            continue
        if name.endswith("inv_freq"):
            found[name] = np.float32(10000.0) ** -(np.arange(shape[0], dtype=np.float32) / shape[0])
            continue
        value = 0.5 * rng.standard_normal(shape)
        found[name] = (0.5 + np.abs(value) if name.endswith("running_var") else value).astype(np.float32)
    return found


def write(folder, family, *, seed=0):
    """Writes a folder of a family (a name of FAMILIES) and returns it."""
    config, shapes, preprocessor = FAMILIES[family]()
    folder.mkdir(parents=True, exist_ok=True)
    _json(folder / "config.json", config | {"transformers_version": "4.50.0", "layerdrop": 0.1})
    _json(folder / "preprocessor_config.json", preprocessor | {"sampling_rate": 16000, "padding_side": "right"})
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-4.0\n---\n\n# A model\n")
    save_file(random_tensors(shapes, seed), folder / "model.safetensors")
    if config["architectures"][0].endswith("ForCTC"):
        write_tokenizer(folder, config["pad_token_id"])
    return folder


def _json(path, content):
    path.write_text(json.dumps(content))


def write_tokenizer(folder, blank, outputs=V):
    """So many symbols: the blank, an unknown one, the space, letters; as Meta publishes them, or a tokenizer.json."""
    letters = [*"abc", *map(chr, range(0x4E00, 0x4E00 + outputs - V))]
    if blank == 0 and "lasr" not in (folder / "config.json").read_text():
        tokens = ["<pad>", "<unk>", "|", *letters]
        _json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
        settings = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": None, "eos_token": None}
        settings |= {"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|"}
        _json(folder / "tokenizer_config.json", settings)
        return
    tokens = ["<unk>", SPACE, *letters]
    tokens.insert(blank, "<pad>")
    numbers = {token: number for number, token in enumerate(tokens)}
    special = [
        {"id": numbers[token], "content": token, "special": True, "single_word": False}
        | {"lstrip": False, "rstrip": False, "normalized": False}
        for token in sorted(("<unk>", "<pad>"), key=numbers.get)
    ]
    scheme = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": scheme,
        "post_processor": None,
        "decoder": scheme,
        "model": {"type": "Unigram", "unk_id": numbers["<unk>"], "vocab": [[token, -1.0] for token in tokens]},
    }
    _json(folder / "tokenizer.json", content)
    _json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"})


def edit_json(path, **changes):
    """Changes keys of the JSON object in a file; None takes a key away."""
    content = json.loads(path.read_text()) | changes
    _json(path, {key: value for key, value in content.items() if value is not None})


def edit_tensors(folder, change):
    """Applies `change` to the dict of all tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
