"""Features and subsamplers of one utterance without padding, float64 numpy, frame by frame and place by place."""

import math

import numpy as np

# --- features ---


def _mel(hz, scale):
    if scale == "kaldi":
        return 1127.0 * math.log(1.0 + hz / 700.0)
    return 3.0 * hz / 200.0 if hz < 1000.0 else 15.0 + 27.0 * math.log(hz / 1000.0) / math.log(6.4)


def _hz(mel, scale):
    """The inverse of `_mel`, by bisection."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _mel(middle, scale) < mel else (low, middle)
    return (low + high) / 2


def mel_weights(config):
    """Triangles `[fft / 2 + 1, F]`."""
    low, high = (_mel(hz, config.mel_scale) for hz in (config.low_hz, config.high_hz))
    points = [low + i * (high - low) / (config.bins + 1) for i in range(config.bins + 2)]
    if config.mel_area:
        points = [_hz(point, config.mel_scale) for point in points]
    weights = np.zeros((config.fft // 2 + 1, config.bins))
    for k in range(config.fft // 2 + 1):
        place = k * config.sample_rate / config.fft
        if not config.mel_area:
            place = _mel(place, config.mel_scale)
        for f in range(config.bins):
            left, middle, right = points[f : f + 3]
            if left < place < right:
                rising = (place - left) / (middle - left) if place < middle else (right - place) / (right - middle)
                weights[k, f] = rising * (2.0 / (right - left) if config.mel_area else 1.0)
    return weights


def window(config):
    """`[W]`."""
    size = round(config.window * config.sample_rate)
    turns = size if config.window_shape == "hann" else size - 1
    hann = np.array([0.5 - 0.5 * math.cos(2 * math.pi * n / turns) for n in range(size)])
    return np.maximum(hann, 0.0) ** 0.85 if config.window_shape == "povey" else hann


def _first_samples(config, count):
    """The first sample of each frame; it may lie before the signal."""
    size, hop = round(config.window * config.sample_rate), round(config.hop * config.sample_rate)
    if config.framing == "inside":
        return [first for first in range(0, count, hop) if first + size <= count]
    whole = range(0, count - hop + 1, hop)
    if config.framing == "hop":
        return [first - (size - hop) // 2 for first in whole]
    # Centred: `fft` samples around the first one, of which the window takes the middle.
    return [first - config.fft // 2 + (config.fft - size) // 2 for first in whole]


def spectra(waveform, config):
    """Logarithms of the mel power, `[T, F]`."""
    x = np.asarray(waveform, np.float64) * config.scale
    if config.unit_variance and len(x):
        x = x / math.sqrt(x.var() + 1e-10)
    if config.preemphasis_of == "signal":
        x = x - config.preemphasis * np.concatenate([[0.0], x])[: len(x)]
    shape, mel = window(config), mel_weights(config)
    rows = []
    for first in _first_samples(config, len(x)):
        frame = np.array([x[n] if 0 <= n < len(x) else 0.0 for n in range(first, first + len(shape))])
        if config.remove_dc:
            frame = frame - frame.mean()
        if config.preemphasis_of == "frame":
            frame = np.array([frame[n] - config.preemphasis * frame[max(n - 1, 0)] for n in range(len(frame))])
        power = np.abs(np.fft.rfft(frame * shape, config.fft)) ** 2
        if config.unit_power:
            power = power / (shape**2).sum()
        rows.append(power @ mel)
    mel_power = np.array(rows).reshape(-1, config.bins)
    return np.log(np.maximum(mel_power, config.floor) if config.floor_mode == "max" else mel_power + config.floor)


def features(waveform, config):
    """Features of one utterance `[S]` without padding: `[T, F]`."""
    if config.kind == "waveform":
        x = np.asarray(waveform, np.float64) * config.scale
        y = (x / math.sqrt(x.var() + 1e-10) if config.unit_variance and len(x) else x)[:, None]
    else:
        y = spectra(waveform, config)
    if config.normalization != "none" and len(y):
        y = y - y.mean(axis=0)
        squares = (y**2).sum(axis=0)
        if config.normalization == "utterance":
            y = y / np.sqrt(squares / len(y) + config.normalization_eps)
        elif config.normalization == "unbiased":
            y = y / np.sqrt(squares / max(len(y) - 1, 1) + config.normalization_eps)
        else:
            y = y / (np.sqrt(squares / max(len(y) - 1, 1)) + config.normalization_eps)
    whole = len(y) // config.stack
    return y[: whole * config.stack].reshape(whole, config.stack * y.shape[1])


# --- subsamplers: `p` holds the weights of one, features are [T, F], and the result is [T', D] ---


def _linear(p, x):
    return x @ p["kernel"] + p["bias"]


def _norm(p, x, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def _gelu(x):
    return np.array([v * 0.5 * (1.0 + math.erf(v / math.sqrt(2.0))) for v in x.ravel()]).reshape(x.shape)


def _over_time(kernel, bias, x, stride):
    taps = len(kernel)
    places = range(0, len(x) - taps + 1, stride)
    rows = [sum(x[first + k] @ kernel[k] for k in range(taps)) + bias for first in places]
    return np.array(rows).reshape(len(places), kernel.shape[2])


def projection(p, x, *, norm_eps=1e-5):
    """LayerNorm and projection."""
    return _linear(p["projection"], _norm(p["norm"], x, norm_eps))


def wave_cnn(p, x, *, strides, norm_eps=1e-5):
    """Convolutions of samples `[S, 1]`."""
    for index, stride in enumerate(strides):
        x = _over_time(p[f"conv_{index}_kernel"], p[f"conv_{index}_bias"], x, stride)
        x = _gelu(_norm(p[f"norm_{index}"], x, norm_eps))
    return projection(p, x, norm_eps=norm_eps)


def conv1d(p, x):
    """Projection, two convolutions of stride 2, projection."""
    x = np.maximum(_linear(p["input"], x), 0.0)
    for index in range(2):
        x = np.maximum(_over_time(p[f"conv_{index}_kernel"], p[f"conv_{index}_bias"], x, 2), 0.0)
    return _linear(p["projection"], x)


def _over_plane(place, x, channels):
    """`place` of every 3 x 3 patch at stride 2, with one zero on every side: `[T, F, C]` -> `[T', F', channels]`."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    frames, bins = (x.shape[0] + 1) // 2, (x.shape[1] + 1) // 2
    out = np.zeros((frames, bins, channels))
    for t in range(frames):
        for f in range(bins):
            out[t, f] = place(padded[2 * t : 2 * t + 3, 2 * f : 2 * f + 3])
    return out


def conv2d_separable(p, x, *, layers=3):
    """A 3 x 3 convolution, then depthwise and pointwise ones, and a projection of all bins and channels."""
    channels = len(p["conv_0_bias"])

    def full(patch):
        return np.tensordot(patch, p["conv_0_kernel"], 3) + p["conv_0_bias"]

    def depthwise(patch):
        return (patch * p[f"depthwise_{index}_kernel"][:, :, 0]).sum(axis=(0, 1)) + p[f"depthwise_{index}_bias"]

    x = np.maximum(_over_plane(full, x[..., None], channels), 0.0)
    for index in range(1, layers):
        x = np.maximum(_linear(p[f"pointwise_{index}"], _over_plane(depthwise, x, channels)), 0.0)
    return _linear(p["projection"], x.reshape(len(x), x.shape[1] * x.shape[2]))
