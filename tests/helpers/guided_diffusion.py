"""guided-diffusion's two networks, told again from how they compute, to convert from and to compare with.

Only what the tests vary can be varied. Modules have the names that checkpoints have.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def attend(qkv: torch.Tensor, heads: int, new_order: bool) -> torch.Tensor:
    """Attention of (B, 3C, N): the new order is thirds of heads, the legacy one is heads of thirds."""
    batch, _, length = qkv.shape
    if new_order:
        q, k, v = qkv.reshape(batch, 3, heads, -1, length).unbind(1)
    else:
        q, k, v = qkv.reshape(batch, heads, 3, -1, length).unbind(2)
    weights = torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(q.shape[2])
    return torch.einsum("bhts,bhcs->bhct", weights.softmax(-1), v).reshape(batch, -1, length)


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)
        attended = attend(self.qkv(self.norm(flat)), self.heads, self.new_order)
        return (flat + self.proj_out(attended)).view_as(x)


class Residual(nn.Module):
    """`resample` is "up", "down" or nothing."""

    def __init__(self, width: int, out: int, emb_width: int, scale_shift: bool, resample: str = "") -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_width, 2 * out if scale_shift else out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def resize(self, x: torch.Tensor) -> torch.Tensor:
        if self.resample == "up":
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        hidden = self.in_layers[2](self.resize(self.in_layers[:2](x)))
        emb = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, 1)
            hidden = self.out_layers[0](hidden) * (1 + scale) + shift
        else:
            hidden = self.out_layers[0](hidden + emb)
        return self.skip_connection(self.resize(x)) + self.out_layers[1:](hidden)


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


class First(nn.Conv2d):
    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class AttentionPool(nn.Module):
    def __init__(self, positions: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(width, positions + 1) / width**0.5)
        self.qkv_proj = nn.Conv1d(width, 3 * width, 1)
        self.c_proj = nn.Conv1d(width, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2)
        tokens = torch.cat([tokens.mean(2, keepdim=True), tokens], 2) + self.positional_embedding
        return self.c_proj(attend(self.qkv_proj(tokens), self.heads, True))[:, :, 0]


class Encoder(nn.Module):
    """The half that goes down, and the middle; both networks begin with it."""

    def __init__(
        self,
        *,
        image_size: int = 16,
        in_channels: int = 3,
        model_channels: int = 32,
        out_channels: int = 6,
        num_res_blocks: int = 1,
        attention_resolutions: tuple[int, ...] = (2,),
        channel_mult: tuple[float, ...] = (1, 2),
        num_classes: int | None = None,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        pool: str = "attention",
    ) -> None:
        super().__init__()
        self.model_channels, emb_width = model_channels, 4 * model_channels

        def residual(width: int, out: int, resample: str = "") -> Residual:
            return Residual(width, out, emb_width, use_scale_shift_norm, resample)

        def attention(width: int) -> Attention:
            heads = num_heads if num_head_channels == -1 else width // num_head_channels
            return Attention(width, heads, use_new_attention_order)

        self.residual, self.attention = residual, attention
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_width), nn.SiLU(), nn.Linear(emb_width, emb_width)
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, emb_width)
        width = int(channel_mult[0] * model_channels)
        self.input_blocks = nn.ModuleList([nn.ModuleList([First(in_channels, width, 3, padding=1)])])
        self.skips = [width]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                block = [residual(width, width := int(mult * model_channels))]
                block += [attention(width)] if 2**level in attention_resolutions else []
                self.input_blocks.append(nn.ModuleList(block))
                self.skips.append(width)
            if level < len(channel_mult) - 1:
                down = residual(width, width, "down") if resblock_updown else Downsample(width)
                self.input_blocks.append(nn.ModuleList([down]))
                self.skips.append(width)
        self.middle_block = nn.ModuleList([residual(width, width), attention(width), residual(width, width)])
        self.width = width

    def embed(self, timesteps: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        half = self.model_channels // 2
        angles = timesteps[:, None].float() * 10000 ** -(torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1))
        return emb if labels is None else emb + self.label_emb(labels)

    def encode(self, x: torch.Tensor, emb: torch.Tensor) -> list[torch.Tensor]:
        """What comes out of each input block, and last of the middle."""
        states = []
        for block in [*self.input_blocks, self.middle_block]:
            for layer in block:
                x = layer(x, emb)
            states.append(x)
        return states


class UNetModel(Encoder):
    def __init__(self, **config) -> None:
        super().__init__(**config)
        config = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "out_channels": 6, **config}
        width, self.output_blocks = self.width, nn.ModuleList()
        for level, mult in reversed([*enumerate(config["channel_mult"])]):
            for layer in range(config["num_res_blocks"] + 1):
                block = [self.residual(width + self.skips.pop(), width := int(mult * config["model_channels"]))]
                block += [self.attention(width)] if 2**level in config.get("attention_resolutions", (2,)) else []
                if level and layer == config["num_res_blocks"]:
                    up = self.residual(width, width, "up") if config.get("resblock_updown") else Upsample(width)
                    block.append(up)
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(
            nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, config["out_channels"], 3, padding=1)
        )

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        emb = self.embed(timesteps, labels)
        *skips, x = self.encode(x, emb)
        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], 1)
            for layer in block:
                x = layer(x, emb)
        return self.out(x)


class EncoderUNetModel(Encoder):
    def __init__(self, **config) -> None:
        super().__init__(**config)
        side = config.get("image_size", 16) // 2 ** (len(config.get("channel_mult", (1, 2))) - 1)
        heads = self.width // config["num_head_channels"]
        self.out = nn.Sequential(
            nn.GroupNorm(32, self.width),
            nn.SiLU(),
            AttentionPool(side**2, self.width, heads, config["out_channels"]),
        )

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.out(self.encode(x, self.embed(timesteps, None))[-1])


def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Other weights in every layer, norms and those that begin as zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        fan_in = weight[0].numel() if weight.ndim > 1 else 1
        with torch.no_grad():
            weight.copy_(noise / fan_in**0.5 if weight.ndim > 1 else 0.2 * noise + name.endswith("weight"))
    return network.eval()
