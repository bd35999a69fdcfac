"""`jaxopt-compress` in a clone: python -m launch.main --config=configs/digits.py --workdir=/tmp/digits"""

from jaxopt_compress.command import console

if __name__ == '__main__':
  console.main()
