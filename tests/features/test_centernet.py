import numpy as np
import pytest
import torch

from intarsia.features.centernet import CLASSES, detect, heat_in, peaks, soft_labels


def scene():
    """Two pictures: a strong and a weak peak of one class side by side, a peak of another class, and nothing."""
    heat = torch.full((2, 16, 16, 80), 1e-3)
    reach = torch.full((2, 16, 16, 4), 8.0)
    heat[0, 4, 5, 0], heat[0, 4, 6, 0], heat[0, 6, 5, 0], heat[0, 12, 12, 16] = 0.9, 0.6, 0.5, 0.4
    heat[0, 4, 5, 16] = 0.3
    reach[0, 4, 5] = torch.tensor([4.0, 8.0, 12.0, 16.0])
    return heat, reach


def test_peaks_are_local_maxima_with_boxes_measured_from_the_cell():
    heat, reach = scene()
    boxes, scores, classes, cells = peaks(heat, reach, 4)
    assert boxes.shape == (2, 4, 4)
    assert scores[0].tolist() == pytest.approx([0.9, 0.5, 0.4, 0.3])  # 0.6 has a neighbour of 0.9
    assert classes[0].tolist() == [0, 0, 16, 16]
    assert cells[0, 0].item() == 4 * 16 + 5
    assert boxes[0, 0].tolist() == [20 - 4, 16 - 8, 20 + 12, 16 + 16]


def test_detections_are_suppressed_class_by_class_and_counted():
    heat, reach = scene()
    reach[0, 6, 5] = torch.tensor([4.0, 16.0, 12.0, 8.0])  # the very box of the strong peak
    found = detect(heat, reach, score=0.35, overlap=0.5, least=0, most=20)
    assert found[0].labels.tolist() == [1, 17]
    assert [CLASSES[x] for x in found[0].labels] == ["person", "dog"]
    assert found[0].boxes[0].tolist() == pytest.approx([16 / 64, 8 / 64, 32 / 64, 32 / 64])
    assert len(found[1].boxes) == 0
    assert len(detect(heat, reach, 0.35, 0.5, least=3, most=20)[0].boxes) == 3
    assert len(detect(heat, reach, 0.0, 0.5, least=0, most=1)[0].boxes) == 1


def test_boxes_stay_inside_the_picture_and_keep_an_area():
    heat, reach = scene()
    heat[0, 0, 0, 5], reach[0, 0, 0] = 0.8, torch.tensor([50.0, 50.0, 500.0, 3.0])
    heat[0, 8, 0, 6], reach[0, 8, 0] = 0.95, torch.tensor([9.0, 9.0, -2.0, 9.0])  # wholly left of the picture
    found = detect(heat, reach, 0.2, 0.5, 0, 20)[0]
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= 1
    assert 7 not in found.labels.tolist()
    assert found.boxes[found.labels == 6][0].tolist() == pytest.approx([0, 0, 1, 3 / 64])


def test_soft_labels_are_distributions_with_the_best_score_kept_from_the_background():
    heat = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.0, 0.0], [0.1, 0.1, 0.1]])
    probs = soft_labels(heat)
    assert probs.sum(1).tolist() == pytest.approx([1, 1, 1])
    assert probs[0].tolist() == pytest.approx([0.2, 0.64, 0.16, 0.0])
    assert probs[1].tolist() == [1, 0, 0, 0]
    assert probs[2, 0].item() == pytest.approx(0.9)


def test_given_boxes_read_their_middle():
    heat = torch.zeros(8, 8, 2)
    heat[3, 3, 0], heat[0, 0, 1] = 0.7, 0.9
    got = heat_in(heat, torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.01, 0.01], [0.99, 0.99, 1.0, 1.0]]))
    np.testing.assert_allclose(got.numpy(), [[0.7, 0], [0, 0.9], [0, 0]], atol=1e-6)


def test_the_classes_are_background_and_eighty():
    assert len(CLASSES) == len(set(CLASSES)) == 81
    assert [CLASSES[i] for i in (0, 1, 4, 17, 42, 61, 80)] == [
        "background",
        "person",
        "motorcycle",
        "dog",
        "cup",
        "dining table",
        "toothbrush",
    ]
