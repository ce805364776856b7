"""`python -m yogo_jax.inspect`, which does what `yogo-jax inspect` does."""

if __name__ == "__main__":
    from yogo_jax.command import own_this_process

    own_this_process()

from yogo_jax.inspect_data import main


if __name__ == "__main__":
    main()
