<?php

declare(strict_types=1);

namespace apachews\Tests;

use apachews\Transport\SendQueue;
use apachews\Wire\Frame;
use PHPUnit\Framework\Attributes\DataProvider;
use PHPUnit\Framework\TestCase;

/**
 * The send queue: order, whole frames, memory.
 */
final class SendQueueTest extends TestCase
{
    public function testBytesComeOutInOrderWhateverTheWrites(): void
    {
        mt_srand(6455);
        for ($round = 0; $round < 5; $round++) {
            $queue = new SendQueue();
            $in = $out = '';
            for ($step = 0; $step < 500; $step++) {
                if (mt_rand(0, 2) > 0) {
                    $size = mt_rand(0, 3) === 0 ? mt_rand(1000, 200_000) : mt_rand(0, 300);
                    $frame = Frame::encode(Frame::BINARY, str_repeat(chr(mt_rand(0, 255)), $size));
                    $in .= $frame;
                    $queue->add($frame);
                } elseif (($head = $queue->head()) !== '') {
                    $taken = mt_rand(1, strlen($head));
                    $out .= substr($head, 0, $taken);
                    $queue->consume($taken);
                }
                self::assertSame(strlen($in) - strlen($out), $queue->bytes);
            }
            while (($head = $queue->head()) !== '') {
                $out .= $head;
                $queue->consume(strlen($head));
            }
            self::assertTrue($in === $out);
            self::assertTrue($queue->isEmpty());
        }
    }

    /**
     * @return array<string, array{list<int>, int, int}>
     */
    public static function drops(): array
    {
        return [
            'nothing is sent' => [[10, 20], 0, 0],
            'inside a large frame' => [[5000, 20], 3, 5004 - 3],
            'inside a header' => [[5000, 20], 1, 5004 - 1],
            'at the end of a large frame' => [[5000, 20], 5004, 0],
            'inside the first of a run' => [[10, 20, 30], 5, 12 - 5],
            'between two of a run' => [[10, 20, 30], 12, 0],
            'inside the second of a run' => [[10, 20, 30], 13, 12 + 22 - 13],
        ];
    }

    /**
     * @dataProvider drops
     *
     * @param list<int> $payloads
     */
    #[DataProvider('drops')]
    public function testOnlyTheRestOfAFrameSurvivesADrop(array $payloads, int $sent, int $left): void
    {
        $queue = new SendQueue();
        $all = '';
        foreach ($payloads as $size) {
            $frame = Frame::encode(Frame::BINARY, random_bytes($size));
            $all .= $frame;
            $queue->add($frame);
        }
        if ($sent > 0) {
            $queue->consume($sent);
        }
        $queue->drop();
        self::assertSame($left, $queue->bytes);
        self::assertSame(substr($all, $sent, $left), $queue->head());
        $queue->drop();
        self::assertSame($left, $queue->bytes, 'again it changes nothing');
        $queue->add("\x88\x00");
        self::assertSame($left + 2, $queue->bytes);
    }

    public function testManySmallFramesNeedLittleMoreMemoryThanTheirBytes(): void
    {
        $queue = new SendQueue();
        $before = memory_get_usage();
        for ($number = 0; $number < 100_000; $number++) {
            $queue->add("\x81\x01x");
        }
        self::assertSame(300_000, $queue->bytes);
        self::assertLessThan(1_000_000, memory_get_usage() - $before);
    }
}
