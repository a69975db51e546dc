"""The whole model in float64 numpy, written from the formulas: one utterance, one frame, one head at a time.

It shares no code with the package and takes no shortcut that the package takes: features by FFT, attention by a loop
over queries and keys with the position term of each pair, convolutions by a loop over taps. Parameters are the nested
dicts of the package, those of the blocks stacked on a leading layer axis.

Letters: S samples, T frames, F mel bins, D width, N heads, H head width, K taps, R controller width, V vocabulary.
"""

import functools
import math

import numpy as np


def sigmoid(x):
    """Logistic function."""
    return 1.0 / (1.0 + np.exp(-x))


def silu(x):
    """x sigmoid(x)."""
    return x * sigmoid(x)


def softmax(x):
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(x):
    """Over the last axis."""
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def untouched(name, x, y):
    """The hook that changes nothing; every affine map of a block passes its name, input `[T, in]` and output by one."""
    del name, x
    return y


def linear(p, x):
    """x W + b, where b may be absent."""
    y = x @ p["kernel"]
    return y + p["bias"] if "bias" in p else y


def layer_norm(p, x, eps):
    """LayerNorm over the last axis with the biased variance; the bias may be absent."""
    out = np.empty_like(x)
    for t in range(len(x)):
        centred = x[t] - x[t].mean()
        out[t] = centred / math.sqrt((centred**2).mean() + eps) * p["scale"]
        if "bias" in p:
            out[t] += p["bias"]
    return out


def batch_norm(p, x):
    """BatchNorm channel by channel, by the stored mean and variance and with the epsilon of all published encoders."""
    out = np.empty_like(x)
    for d in range(x.shape[1]):
        out[:, d] = p["scale"][d] * (x[:, d] - p["mean"][d]) / math.sqrt(p["variance"][d] + 1e-5) + p["bias"][d]
    return out


# --- features ---


def hz_to_mel(hz):
    """1127 ln(1 + f / 700)."""
    return 1127.0 * math.log(1.0 + hz / 700.0)


def mel_weights(config):
    """Triangular filters, linear in mel, peak 1: `[fft / 2 + 1, F]`."""
    low, high = hz_to_mel(config.low_hz), hz_to_mel(config.high_hz)
    step = (high - low) / (config.bins + 1)
    weights = np.zeros((config.fft // 2 + 1, config.bins))
    for k in range(config.fft // 2 + 1):
        mel = hz_to_mel(k * config.sample_rate / config.fft)
        for f in range(config.bins):
            centre = low + (f + 1) * step
            weights[k, f] = max(0.0, 1.0 - abs(mel - centre) / step)
    return weights


def log_mel(waveform, config):
    """Log-mel features of one utterance `[S]` without padding: `[T, F]`, T = S // hop."""
    x = np.asarray(waveform, np.float64)
    size, hop = round(config.window * config.sample_rate), round(config.hop * config.sample_rate)
    frames = len(x) // hop
    if config.unit_variance and len(x):
        x = x / math.sqrt(((x - x.mean()) ** 2).mean() + 1e-10)
    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * n / size) for n in range(size)])
    mel = mel_weights(config)
    features = np.zeros((frames, config.bins))
    for i in range(frames):
        first = i * hop - (size - hop) // 2
        segment = np.array([x[n] if 0 <= n < len(x) else 0.0 for n in range(first, first + size)])
        power = np.abs(np.fft.rfft(segment * window, config.fft)) ** 2 / (window**2).sum()
        features[i] = np.log(power @ mel + config.floor)
    if config.normalization == "utterance" and frames:
        features = features - features.mean(axis=0)
        features = features / np.sqrt((features**2).mean(axis=0) + 1e-5)
    return features


# --- subsampling ---


def convolve_2d(kernel, bias, x):
    """3 x 3 convolution, stride 2, one zero on every side, ReLU: `[T, F, C]` -> `[(T + 1) // 2, (F + 1) // 2, C']`."""
    frames, bins = x.shape[:2]
    padded = np.zeros((frames + 2, bins + 2, x.shape[2]))
    padded[1:-1, 1:-1] = x
    out = np.zeros(((frames + 1) // 2, (bins + 1) // 2, kernel.shape[-1]))
    for t in range(out.shape[0]):
        for f in range(out.shape[1]):
            total = bias.copy()
            for dt in range(3):
                for df in range(3):
                    total = total + padded[2 * t + dt, 2 * f + df] @ kernel[dt, df]
            out[t, f] = np.maximum(total, 0.0)
    return out


def subsample(p, features):
    """Features of one utterance `[T, F]` -> `[T', D]`; as many convolutions as there are kernels."""
    x = features[..., None]
    layers = sum(name.endswith("_kernel") for name in p)
    for index in range(layers):
        x = convolve_2d(p[f"conv_{index}_kernel"], p[f"conv_{index}_bias"], x)
    return linear(p["projection"], x.reshape(len(x), x.shape[1] * x.shape[2]))


# --- attention ---


def may_see(i, j, config):
    """Whether the query at frame i may see the key at frame j, by position alone."""
    if config.context == "full":
        return True
    if config.context == "window":
        behind = config.left_context < 0 or i - j <= config.left_context
        ahead = config.right_context < 0 or j - i <= config.right_context
        return behind and ahead
    own, other = i // config.chunk, j // config.chunk
    return other <= own and (config.left_context < 0 or own - other <= config.left_context)


def sinusoid(offset, width):
    """Sine and cosine interleaved, rates 10000^(-2k / width)."""
    table = np.zeros(width)
    for k in range(width // 2):
        rate = 10000.0 ** (-2 * k / width)
        table[2 * k], table[2 * k + 1] = math.sin(offset * rate), math.cos(offset * rate)
    return table


def rotated(vector, place, base):
    """Rotary embedding of one head's vector: the pair (k, k + H / 2) turns by place * base^(-2k / H)."""
    half = len(vector) // 2
    out = np.zeros(len(vector))
    for k in range(half):
        angle = place * base ** (-2 * k / len(vector))
        a, b = vector[k], vector[k + half]
        out[k], out[k + half] = a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)
    return out


def score(p, query, key, i, j, head, config):
    """Logit of one pair before the scale; `query` and `key` are the `[H]` vectors of frames i and j."""
    if config.position in ("none", "rope_in"):
        return query @ key
    if config.position == "shaw":
        row = min(max(j - i, -config.shaw_left), config.shaw_right) + config.shaw_left
        return query @ (key + p["distance"][row])
    if config.position == "rope_qk":
        return rotated(query, i, config.rope_base) @ rotated(key, j, config.rope_base)
    width = len(query)
    offset = (sinusoid(i - j, config.d_model) @ p["position"]["kernel"])[head * width : (head + 1) * width]
    return (query + p["content_bias"][head]) @ key + (query + p["position_bias"][head]) @ offset


def attention(p, x, length, config, hook=untouched):
    """`[T, D]` -> `[T, D]`; keys at or beyond `length` are hidden. A query that sees nothing averages all values."""
    frames, width = len(x), config.d_model // config.n_heads
    inputs = {"query": x, "key": x, "value": x}
    if config.position == "rope_in":
        parts = [slice(head * width, (head + 1) * width) for head in range(config.n_heads)]
        turned = [np.concatenate([rotated(x[t, part], t, config.rope_base) for part in parts]) for t in range(frames)]
        inputs["query"] = inputs["key"] = np.array(turned)
    queries, keys, values = (hook(f"attention.{n}", inputs[n], linear(p[n], inputs[n])) for n in inputs)
    out = np.zeros((frames, config.d_model))
    for head in range(config.n_heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(frames):
            seen = [j for j in range(length) if may_see(i, j, config)] or list(range(frames))
            blind = not any(may_see(i, j, config) for j in range(length))
            logits = [
                0.0 if blind else score(p, queries[i, part], keys[j, part], i, j, head, config) / math.sqrt(width)
                for j in seen
            ]
            for share, j in zip(softmax(np.array(logits)), seen, strict=True):
                out[i, part] += share * values[j, part]
    return hook("attention.output", out, linear(p["output"], out))


# --- the block ---


def feed_forward(p, x, config, name, hook):
    """LayerNorm, up, SiLU, down."""
    x = hook(f"{name}.norm", x, layer_norm(p["norm"], x, config.norm_eps))
    x = silu(hook(f"{name}.up", x, linear(p["up"], x)))
    return hook(f"{name}.down", x, linear(p["down"], x))


def depthwise(p, x, *, causal):
    """out[t] = sum_k taps[k] x[t + k - left], zeros beyond both ends."""
    taps = p["kernel"]
    left = len(taps) - 1 if causal else (len(taps) - 1) // 2
    out = np.zeros_like(x)
    for t in range(len(x)):
        for k in range(len(taps)):
            if 0 <= t + k - left < len(x):
                out[t] += taps[k] * x[t + k - left]
    return out + p["bias"] if "bias" in p else out


def convolution(p, x, length, config, hook):
    """LayerNorm, GLU (value half first), depthwise convolution, norm, SiLU, pointwise."""
    x = hook("convolution.norm", x, layer_norm(p["norm"], x, config.norm_eps))
    if config.conv_mask == "pre_pointwise":
        x[length:] = 0.0
    y = hook("convolution.gated", x, linear(p["gated"], x))
    y = y[:, : config.d_model] * sigmoid(y[:, config.d_model :])
    if config.conv_mask == "post_glu":
        y[length:] = 0.0
    y = hook("convolution.depthwise", y, depthwise(p["depthwise"], y, causal=config.conv_padding == "causal"))
    if config.conv_norm != "none":
        norm = p["depthwise_norm"]
        normed = batch_norm(norm, y) if config.conv_norm == "batch" else layer_norm(norm, y, config.norm_eps)
        y = hook("convolution.depthwise_norm", y, normed)
    y = silu(y)
    return hook("convolution.output", y, linear(p["output"], y))


def block(p, x, length, config, hook=untouched):
    """One Conformer block."""
    a, b = config.ff_residual
    c, e = config.conv_residual
    x = a * x + b * feed_forward(p["ff1"], x, config, "ff1", hook)
    y = hook("attention.norm", x, layer_norm(p["attention_norm"], x, config.norm_eps))
    x = x + attention(p["attention"], y, length, config, hook)
    x = c * x + e * convolution(p["convolution"], x, length, config, hook)
    x = a * x + b * feed_forward(p["ff2"], x, config, "ff2", hook)
    return hook("final_norm", x, layer_norm(p["final_norm"], x, config.norm_eps))


# --- the adapter ---


def controller(p, x, state):
    """s_l = relu(W x_l + u * s_{l-1} + b), frame by frame."""
    out = np.empty_like(state)
    for t in range(len(x)):
        out[t] = np.maximum(x[t] @ p["kernel"] + p["recurrent"] * state[t] + p["bias"], 0.0)
    return out


def head(p, state):
    """V s + c, or V2 relu(V1 s + c1) + c2 where the head has a hidden layer."""
    if "hidden_bias" in p:
        state = np.maximum(state @ p["hidden_kernel"] + p["hidden_bias"], 0.0)
    return linear(p, state)


# --- the model ---


def layer_of(tree, index):
    """The parameters of one layer, out of leaves stacked on a leading axis."""
    if isinstance(tree, dict):
        return {name: layer_of(child, index) for name, child in tree.items()}
    return np.asarray(tree[index], np.float64)


def float64(tree):
    """The same tree in float64 numpy."""
    if isinstance(tree, dict):
        return {name: float64(child) for name, child in tree.items()}
    return np.asarray(tree, np.float64)


def encode(p, x, length, config, adapter=None, hooks=None):
    """The blocks on `[T, D]` of which `length` frames are valid; `adapter` and `hooks` as for `log_probs`."""
    x = x * config.input_scale
    x[length:] = 0.0
    state = None if adapter is None else np.zeros((len(x), len(adapter[0]["bias"])))
    for index in range(config.n_layers):
        hook = untouched if hooks is None else functools.partial(hooks.after_affine, index)
        y = block(layer_of(p["layers"], index), x, length, config, hook)
        x = y if hooks is None else hooks.after_layer(index, x, y)
        if adapter is not None:
            state = controller(adapter[0], x, state)
            x = x + head(adapter[1], state)
    return layer_norm(p["final_norm"], x, config.norm_eps) if config.final_norm else x


def log_probs(p, waveform, frames, features, config, adapter=None, hooks=None):
    """Log-probabilities of one utterance.

    Args:
      p: the backbone's parameters.
      waveform: `[S]`, without padding.
      frames: encoder frames of the padded batch that it stands in; they matter where the convolution is not masked.
      features: the feature settings.
      config: the encoder's geometry.
      adapter: (controller, head) of the utterance's task, or None.
      hooks: an adaptation method of `adapters_numpy`, or None.

    Returns:
      float64 `[T, V]`, valid frames only.
    """
    p = float64(p)
    x = subsample(p["subsampling"], log_mel(waveform, features))
    padded = np.zeros((frames, config.d_model))
    padded[: len(x)] = x
    adapter = adapter and tuple(float64(part) for part in adapter)
    x = encode(p["encoder"], padded, len(x), config, adapter, hooks)[: len(x)]
    logits = linear(p["output"], x)
    return log_softmax(logits if hooks is None else hooks.after_output(x, logits))
