"""Names of the DiT: the published ones on the left, ours on the right (`casual` is the checkpoint's spelling)."""

from liveavatar.checkpoint.keymap import KeyMap

DIT = KeyMap(
    "DiT",
    [
        ("patch_embedding.{*}", "embed.patch_embedding.{*}"),
        ("cond_encoder.{*}", "embed.cond_encoder.{*}"),
        ("trainable_cond_mask.{*}", "embed.trainable_cond_mask.{*}"),
        ("frame_packer.{*}", "embed.frame_packer.{*}"),
        ("text_embedding.{i}.{*}", "embed.text_embedding.{i}.{*}"),
        ("time_embedding.{i}.{*}", "embed.time_embedding.{i}.{*}"),
        ("time_projection.1.{*}", "embed.time_projection.{*}"),
        ("casual_audio_encoder.weights", "embed.audio_encoder.weights"),
        ("casual_audio_encoder.encoder.{*}", "embed.audio_encoder.{*}"),
        ("blocks.{i}.{*}", "blocks.{i}.{*}"),
        ("audio_injector.injector.{i}.{*}", "injectors.{i}.attention.{*}"),
        ("audio_injector.injector_adain_layers.{i}.{*}", "adain.{i}.norm.{*}"),
        ("head.{*}", "head.{*}"),
    ],
)
