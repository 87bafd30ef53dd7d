"""What holds for how long: settings, masks, pose, the sink's plan."""

import pytest
import torch

from liveavatar.models.vae.codec import WanCodec
from liveavatar.sampling.conditioning import MaskTrack, PoseClips, RolloutSettings, SinkPlan
from tests.scene import draw


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames_per_clip": 80}, r"rollout\.frames_per_clip=80 .* write rollout\.frames_per_clip=84"),
        ({"frames_per_clip": 0}, r"write rollout\.frames_per_clip=12"),
        ({"cache_frames": 10}, r"rollout\.cache_frames=10"),
        ({"cache_frames": 0}, r"rollout\.cache_frames=0"),
        ({"local_frames": 2}, r"rollout\.local_frames=2"),
        ({"local_frames": 0}, r"rollout\.local_frames=0"),
    ],
)
def test_settings_that_cannot_work_name_their_key(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutSettings(**change)


def test_an_unknown_mode_names_its_key() -> None:
    settings = RolloutSettings()
    object.__setattr__(settings, "mode", "stepwise")  # past the shape checker, as a configuration comes
    with pytest.raises(ValueError, match=r"rollout\.mode='stepwise'"):
        settings.__post_init__()


def test_settings_count_blocks_latents_and_lead() -> None:
    settings = RolloutSettings(frames_per_clip=36, local_frames=3)
    assert (settings.blocks_per_clip, settings.clip_latents, settings.lead_frames) == (3, 9, 3)
    assert RolloutSettings(align_sound=False).lead_frames == 0


def test_masks_follow_their_block_and_the_last_frame_holds() -> None:
    masks = draw(0, 2, 7, 3, 4)
    track = MaskTrack(masks)
    assert torch.equal(track.block(0), masks[:, :3])
    assert torch.equal(track.block(1), masks[:, 3:6])
    assert torch.equal(track.block(2), masks[:, [6, 6, 6]])
    assert torch.equal(track.block(10**6), masks[:, [6, 6, 6]])
    still = MaskTrack(masks, follow=False)
    assert all(torch.equal(still.block(b), masks[:, :3]) for b in (0, 1, 50))


class _FakeCodec(WanCodec):
    """Encodes every fourth frame as itself, so that it can be seen which frames were encoded together."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.dummy = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        self.seen.append(video)
        return video[:, :1, ::4].expand(-1, 16, -1, -1, -1)


def test_pose_clips_are_encoded_behind_their_own_first_frame_and_end_in_black() -> None:
    codec = _FakeCodec()
    video = draw(0, 3, 60, 2, 2)
    pose = PoseClips(codec, iter(video.unbind(1)), 48)
    first = torch.stack([pose.block(b) for b in range(4)])
    assert len(codec.seen) == 1
    assert torch.equal(codec.seen[0][0], torch.cat((video[:, :1], video[:, :48]), dim=1))
    behind = codec.seen[0][:, :1, 4::4]
    assert torch.equal(first[:, :, :1].flatten(0, 1), behind.unflatten(2, (4, 3))[0].permute(1, 0, 2, 3, 4))
    pose.block(5)
    assert torch.equal(codec.seen[1][0, :, :13], torch.cat((video[:, 48:49], video[:, 48:]), dim=1))
    assert (codec.seen[1][0, :, 13:] == -1).all()
    assert (pose.block(8) == -1).all()
    with pytest.raises(RuntimeError, match="out of order"):
        pose.block(0)


def test_the_first_pose_lasts_longer_and_a_pose_without_frames_is_refused() -> None:
    codec = _FakeCodec()
    video = draw(0, 3, 48, 2, 2)
    PoseClips(codec, iter(video.unbind(1)), 48, lead_frames=3).block(0)
    assert torch.equal(codec.seen[0][0], torch.cat((video[:, :1].expand(-1, 5, -1, -1), video[:, 1:45]), dim=1))
    with pytest.raises(ValueError, match=r"request\.pose"):
        PoseClips(codec, iter(()), 48)


def test_the_sink_is_refreshed_once_by_the_first_latent_of_the_stream() -> None:
    reference, motion, later = draw(0, 1, 16, 1, 2, 2), draw(1, 1, 16, 19, 2, 2), draw(2, 1, 16, 19, 2, 2)
    asked = iter((motion, later))
    plan = SinkPlan(reference, lambda: next(asked), refresh=4)
    blocks = [draw(10 + b, 1, 16, 3, 2, 2) for b in range(9)]
    dues = []
    for b in range(9):
        dues.append(plan.due(b))
        plan.observe(b, blocks[b])
    assert [b for b, due in enumerate(dues) if due is not None] == [0, 4]
    assert torch.equal(dues[0][0], reference)
    assert torch.equal(dues[0][1], motion)
    assert torch.equal(dues[4][0], blocks[0][:, :, :1])
    assert torch.equal(dues[4][1], later)


def test_the_first_latent_is_kept_though_its_block_is_reused() -> None:
    plan = SinkPlan(draw(0, 1, 16, 1, 2, 2), lambda: draw(1, 1, 16, 19, 2, 2), refresh=1)
    block = draw(2, 1, 16, 3, 2, 2)
    kept = block[:, :, :1].clone()
    plan.observe(0, block)
    block.zero_()
    due = plan.due(1)
    assert due is not None
    assert torch.equal(due[0], kept)


def test_without_a_refresh_the_sink_stays() -> None:
    plan = SinkPlan(draw(0, 1, 16, 1, 2, 2), lambda: draw(1, 1, 16, 19, 2, 2))
    plan.observe(0, draw(3, 1, 16, 3, 2, 2))
    assert [b for b in range(9) if plan.due(b) is not None] == [0]


def test_a_plan_counts_from_the_first_block_of_its_stream() -> None:
    plan = SinkPlan(draw(0, 1, 16, 1, 2, 2), lambda: draw(1, 1, 16, 19, 2, 2), first_block=100, refresh=104)
    assert plan.due(0) is None
    assert plan.due(100) is not None
    plan.observe(100, draw(3, 1, 16, 3, 2, 2))
    assert plan.due(104) is not None


def test_a_schedule_that_is_too_early_for_the_refresh_is_told() -> None:
    plan = SinkPlan(draw(0, 1, 16, 1, 2, 2), lambda: draw(1, 1, 16, 19, 2, 2), refresh=4)
    plan.due(0)
    with pytest.raises(RuntimeError, match="block 0 is not finished"):
        plan.due(4)
