"""scipy.fft with the kernel's spectrum cached."""
from common import *
import scipy
from scipy import fft

batch, heads, n = SHAPE
u, k = read("u", batch, heads, n), read("k", heads, n)
kf = fft.rfft(k, n=2 * n)
call = lambda i: fft.irfft(fft.rfft(u, n=2 * n, workers=THREADS) * kf, n=2 * n, workers=THREADS)[..., :n]
serve("scipy", "scipy " + scipy.__version__, [Entry("scipy.fft", "k", 0, call)])
