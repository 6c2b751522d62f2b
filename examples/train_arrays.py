"""Train the small CNN on arrays from Python, then look at what it predicts.

python examples/train_arrays.py [EPOCHS]
"""

import sys

import fastadam


def main(epochs: int = 3) -> float:
    """Train for so many epochs; returns the accuracy on images that were not trained on."""
    data = fastadam.data.synthetic.generate(train=6000, test=1000)
    model = fastadam.models.build("cnn", classes=10, seed=0)
    model.classes = data.classes
    trainer = fastadam.Trainer(model, optimizer="adamw", lr=1e-3, batch_size=128, schedule="cosine")
    for record in trainer.fit((data.train_images, data.train_labels), epochs=epochs):
        print(f"epoch {record.epoch}  loss {record.train_loss:.3f}  validation {record.val_accuracy:.1%}")
    predicted = model.predict(data.test_images)
    for number in range(3):
        told, true = data.classes[predicted[number]], data.classes[data.test_labels[number]]
        print(f"test image {number}: {told} (it is {true})")
    accuracy = float((predicted == data.test_labels).mean())
    print(f"test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
