from __future__ import annotations

import pytest
import torch

from medmoco.config import DecoderSettings, MethodSettings, ModelSettings
from medmoco.models.backbones import create_backbone
from medmoco.models.decoder import create_decoder, weighted_squared_error
from medmoco.models.moco import create_moco


@pytest.mark.parametrize("size", [16, 30, 96])
def test_decoder__makes_views_of_any_size(size: int) -> None:
    decoder = create_decoder(8, size, 3, DecoderSettings(weight=1, channels=32))
    assert decoder is not None
    assert decoder(torch.randn(2, 8)).shape == (2, 3, size, size)


def test_create_decoder__only_where_it_has_a_weight() -> None:
    assert create_decoder(8, 32, 1, DecoderSettings()) is None


def test_weighted_squared_error__equals_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    made, views = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    weights = torch.rand(2, 1, 4, 4, generator=generator)
    total = 0.0
    for i in range(2):
        for channel in range(3):
            for y in range(4):
                for x in range(4):
                    weight = 0.25 + 0.75 * float(weights[i, 0, y, x])
                    total += weight * (float(made[i, channel, y, x]) - float(views[i, channel, y, x])) ** 2
    assert float(weighted_squared_error(made, views, weights, 0.25)) == pytest.approx(total / 96, rel=1e-5)
    plain = float(torch.square(made - views).mean())
    assert float(weighted_squared_error(made, views, None, 0.25)) == pytest.approx(plain, rel=1e-6)


def test_create_moco__decodes_the_embedding_before_it_is_normalised() -> None:
    backbone = create_backbone(ModelSettings(backbone="test_resnet"), seed=0, size=32)
    method = MethodSettings(queue_size=4)
    model = create_moco(backbone, method, seed=1, decoder=DecoderSettings(weight=1, channels=32), size=32).eval()
    views = torch.randn(3, 1, 32, 32)
    queries, made = model.branches()([views])
    embedding = model.query_encoder(views)
    torch.testing.assert_close(queries[0], torch.nn.functional.normalize(embedding, dim=1))
    assert model.decoder is not None
    torch.testing.assert_close(made[0], model.decoder(embedding))
    again = create_moco(backbone, method, seed=1, decoder=DecoderSettings(weight=1, channels=32), size=32)
    assert again.decoder is not None
    for name, value in again.decoder.state_dict().items():
        assert torch.equal(value, model.decoder.state_dict()[name]), name


@pytest.mark.parametrize("size", [16, 30])
def test_decoder__makes_volumes_of_any_size(size: int) -> None:
    decoder = create_decoder(8, size, 2, DecoderSettings(weight=1, channels=32), dimensions=3)
    assert decoder is not None
    assert decoder(torch.randn(2, 8)).shape == (2, 2, size, size, size)


def test_weighted_squared_error__of_volumes_equals_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    made, views = (torch.randn(2, 2, 3, 4, 5, generator=generator) for _ in range(2))
    weights = torch.rand(2, 1, 3, 4, 5, generator=generator)
    total = 0.0
    for i, channel, x, y, z in torch.cartesian_prod(*(torch.arange(side) for side in views.shape)).tolist():
        weight = 0.25 + 0.75 * float(weights[i, 0, x, y, z])
        total += weight * (float(made[i, channel, x, y, z]) - float(views[i, channel, x, y, z])) ** 2
    assert float(weighted_squared_error(made, views, weights, 0.25)) == pytest.approx(total / views.numel(), rel=1e-5)


def test_decoder__learns_to_reconstruct_volumes() -> None:
    backbone = create_backbone(ModelSettings(backbone="monai/resnet10_quarter"), seed=0, size=16, dimensions=3)
    settings = DecoderSettings(weight=1, channels=32)
    model = create_moco(backbone, MethodSettings(queue_size=4), seed=1, decoder=settings, size=16)
    coordinates = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 3, indexing="ij"))
    centres = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    views = ((coordinates - centres[:, :, None, None, None]).square().sum(1, keepdim=True) < 0.4).float()
    branches = model.branches()
    optimizer = torch.optim.AdamW(branches.parameters(), 3e-3)
    errors = []
    for _ in range(12):
        _, (made,) = branches([views])
        loss = weighted_squared_error(made, views, None, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < errors[0] / 3
