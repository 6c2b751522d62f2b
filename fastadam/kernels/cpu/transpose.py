"""A matrix transposed by squares of a vector's width that never leave the registers."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.simd import WIDTH, element, load_ir, store_ir


@intrinsic
def _square(typingctx, y, y_at, y_step, x, x_at, x_step):
    """A square of WIDTH rows: log2(WIDTH) rounds, each of which exchanges blocks off the diagonal of twice the size."""
    n = types.intp

    def generate(context, builder, sig, args):
        to, source = (element(context, builder, sig.args[t], args[t], args[t + 1]) for t in (0, 3))

        def line(base, step, i):
            return builder.gep(base, [builder.mul(step, ir.IntType(64)(i))])

        rows = [load_ir(builder, line(source, args[5], i)) for i in range(WIDTH)]
        half, kind = 1, ir.VectorType(ir.IntType(32), WIDTH)
        while half < WIDTH:
            low = ir.Constant(kind, [j + WIDTH - half if j & half else j for j in range(WIDTH)])
            high = ir.Constant(kind, [j + WIDTH if j & half else j + half for j in range(WIDTH)])
            for i in (i for i in range(WIDTH) if not i & half):
                a, b = rows[i], rows[i + half]
                rows[i], rows[i + half] = (builder.shuffle_vector(a, b, mask) for mask in (low, high))
            half *= 2
        for i, row in enumerate(rows):
            store_ir(builder, row, line(to, args[2], i))
        return context.get_dummy_value()

    return types.void(y, n, n, x, n, n), generate


@leaf
def transpose(y, y_at, y_step, x, x_at, x_step, rows, columns):
    """``y[y_at + j * y_step + i] = x[x_at + i * x_step + j]`` for i < rows, j < columns; flat float32 arrays."""
    whole_rows, whole_columns = rows // WIDTH * WIDTH, columns // WIDTH * WIDTH
    for j in range(0, whole_columns, WIDTH):
        for i in range(0, whole_rows, WIDTH):
            _square(y, y_at + j * y_step + i, y_step, x, x_at + i * x_step + j, x_step)
        for k in range(j, j + WIDTH):
            for i in range(whole_rows, rows):
                y[y_at + k * y_step + i] = x[x_at + i * x_step + k]
    for j in range(whole_columns, columns):
        for i in range(rows):
            y[y_at + j * y_step + i] = x[x_at + i * x_step + j]
